"""The site is made without a warning, its links lead somewhere, and what is generated in it is current."""

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
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


@pytest.mark.everything
def test_the_site_is_made_without_a_warning_and_has_all_it_should_have(tmp_path: Path) -> None:
    needs("sphinx")
    needs("furo")
    command = [sys.executable, "-m", "sphinx", "-q", "-n", "-W", "--keep-going", str(DOCS), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    pages = {path: Links(path.read_text("utf-8")) for path in tmp_path.rglob("*.html")}
    for path in pages:
        _links_lead_somewhere(path, pages)
    contents = {*pages[tmp_path / "index.html"].targets, "index.html"}
    assert {path.relative_to(DOCS).with_suffix(".html").as_posix() for path in PAGES.values()} <= contents
    public = {
        f"{'module-' if isinstance(value, ModuleType) else ''}bgmiddleware.{name}"
        for name, value in vars(bgmiddleware).items()
        if name in bgmiddleware.__all__
    }
    assert public <= pages[tmp_path / "reference" / "api.html"].anchors


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
