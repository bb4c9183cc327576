"""The site is made without a warning, its links lead somewhere, and what is generated in it is current."""

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.conftest import needs
from tests.kit import command_line
from tests.kit.documents import DOCS, ROOT


class Links(HTMLParser):
    """What a page of the site links to, and where one may link to in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        named = {name: value or "" for name, value in attributes}
        self.anchors.add(named.get("id", ""))
        for name in ("href", "src"):
            if named.get(name):
                self.targets.append(named[name])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    needs("sphinx")
    needs("furo")
    made = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-n", "-W", "--keep-going", str(DOCS), str(made)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return made


@pytest.mark.everything
def test_the_links_within_the_site_lead_somewhere(site: Path) -> None:
    pages = {path: Links(path.read_text("utf-8")) for path in site.rglob("*.html")}
    assert len(pages) > 20
    for path, page in pages.items():
        for target in page.targets:
            url = urlsplit(target)
            if url.scheme or url.netloc:
                continue
            there = (path.parent / unquote(url.path)).resolve() if url.path else path
            assert there.is_file(), f"{path.relative_to(site)}: {target}"
            if url.fragment and there in pages:
                assert unquote(url.fragment) in pages[there].anchors, f"{path.relative_to(site)}: {target}"


@pytest.mark.everything
def test_the_site_has_each_page_in_its_contents(site: Path) -> None:
    start = Links((site / "index.html").read_text("utf-8"))
    for page in DOCS.rglob("*.rst"):
        assert page.relative_to(DOCS).with_suffix(".html").as_posix() in {*start.targets, "index.html"}


@pytest.mark.everything
def test_what_is_public_is_in_the_reference(site: Path) -> None:
    import bgmiddleware

    anchors = Links((site / "reference" / "api.html").read_text("utf-8")).anchors
    modules = ("marks", "owners")  # which have a section each
    assert {f"bgmiddleware.{name}" for name in bgmiddleware.__all__ if name not in modules} <= anchors


def test_the_page_of_the_command_line_is_what_its_parser_says() -> None:
    assert command_line.PAGE.read_text("utf-8") == command_line.page(), "run python -m tests.kit.command_line"
