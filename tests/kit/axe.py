"""What axe-core, which checks that a page is accessible, has to complain of."""

from importlib import resources
from typing import Any

from tests.conftest import needs

__all__ = ["complaints"]

needs("axe_playwright_python")
_AXE = resources.files("axe_playwright_python").joinpath("axe.min.js").read_text("utf-8")
_RUN = """async () => (await axe.run(document, {resultTypes: ["violations"]})).violations.map(
  ({id, nodes}) => [id, ...nodes.map((node) => `${node.html.slice(0, 200)}: ${node.failureSummary}`)].join("\\n"))"""


def complaints(page: Any) -> list[str]:
    """Return what is wrong with a *page* of playwright as it is now."""
    page.evaluate(_AXE)
    found: list[str] = page.evaluate(_RUN)
    return found
