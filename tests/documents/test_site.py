"""The site is made without a warning, its links lead somewhere, and what is generated in it is current."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

import bgmiddleware
from tests.conftest import needs
from tests.kit import command_line
from tests.kit.documents import DOCS, PAGES, ROOT


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
    """The directory with the site, made without a warning."""
    needs("sphinx")
    needs("furo")
    directory = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-n", "-W", "--keep-going", str(DOCS), str(directory)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return directory


@pytest.mark.everything
def test_the_site_has_all_it_should_have_and_its_links_lead_somewhere(site: Path) -> None:
    pages = {path: Links(path.read_text("utf-8")) for path in site.rglob("*.html")}
    for path in pages:
        _links_lead_somewhere(path, pages)
    contents = {*pages[site / "index.html"].targets, "index.html"}
    assert {path.relative_to(DOCS).with_suffix(".html").as_posix() for path in PAGES.values()} <= contents
    public = {
        f"{'module-' if isinstance(value, ModuleType) else ''}bgmiddleware.{name}"
        for name, value in vars(bgmiddleware).items()
        if name in bgmiddleware.__all__
    }
    assert public <= pages[site / "reference" / "api.html"].anchors


@pytest.mark.everything
def test_the_protocol_on_one_page_is_one_page_in_print(site: Path, browser: Any) -> None:
    page = browser.new_page()
    page.goto((site / "reference" / "protocol-card.html").as_uri())
    sheet = page.pdf(format="A4", margin=dict.fromkeys(("top", "bottom", "left", "right"), "1cm"))
    page.close()
    assert len(re.findall(rb"/Type /Page\b", sheet)) == 1


def _links_lead_somewhere(path: Path, pages: dict[Path, Links]) -> None:
    for target in pages[path].targets:
        url = urlsplit(target)
        if url.scheme or url.netloc:
            continue
        there = (path.parent / unquote(url.path)).resolve() if url.path else path
        assert there.is_file(), f"{path.name}: {target}"
        if url.fragment and there in pages:
            assert unquote(url.fragment) in pages[there].anchors, f"{path.name}: {target}"


def test_the_page_of_the_command_line_is_what_its_parser_says() -> None:
    assert command_line.PAGE.read_text("utf-8") == command_line.page(), "run python -m tests.kit.command_line"
