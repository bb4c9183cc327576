"""Nothing that we did not write becomes markup: every page is read as a browser would read it, by an HTML parser."""

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

import pytest

from bgmiddleware import BackgroundMiddleware, PageParts, ThreadExecutor, _serving, marks, owners, progress
from bgmiddleware._serving import assets
from bgmiddleware._serving.markup import Markup, filled_in
from tests.conftest import needs
from tests.kit.clients import InProcess, ended, start

html5lib: Any = needs("html5lib")

HOSTILE = (
    """"'`>]]></title></style></script></textarea></pre>"""
    """<script>own()</script><img src=x onerror="own()"><!--&lt; &#60;"""
)
BENIGN = "benign"
ROOM = Path(_serving.__file__).parent


def shape(page: str) -> list[tuple[str, tuple[str, ...]]]:
    """Return the elements of a page and the names of their attributes, in order: what a browser makes of it."""
    tree = html5lib.parse(page, treebuilder="etree", namespaceHTMLElements=False)
    return [(str(element.tag), tuple(sorted(element.attrib))) for element in tree.iter()]


def templates() -> Iterator[tuple[str, Template]]:
    """Yield all that we have."""
    for path in sorted((ROOM / "static").glob("*.html")):
        yield path.name, assets.template(path.name)
    for found in pkgutil.iter_modules([str(ROOM)]):
        module = importlib.import_module(f"{_serving.__name__}.{found.name}")
        for name, value in vars(module).items():
            if isinstance(value, Template):
                yield f"{found.name}.{name}", value


def test_there_are_templates_to_look_at() -> None:
    assert len(dict(templates())) >= 7


@pytest.mark.parametrize("name", sorted(dict(templates())))
def test_a_hostile_value_in_any_slot_of_any_template_stays_a_value(name: str) -> None:
    template = dict(templates())[name]
    slots = template.get_identifiers()
    # Where an attribute may be there is only markup of ours, so that is no place for a value.
    values = [slot for slot in slots if not re.search(rf'(?<!=)"\${slot}\b', template.template)]
    assert len(values) >= len(slots) / 2
    before = shape(filled_in(template, dict.fromkeys(slots, Markup()) | dict.fromkeys(values, BENIGN)))
    for slot in values:
        page = filled_in(template, dict.fromkeys(slots, Markup()) | dict.fromkeys(values, BENIGN) | {slot: HOSTILE})
        assert shape(page) == before, slot


def test_what_is_markup_is_put_in_as_it_is() -> None:
    assert filled_in(Template("<p>$a$b"), {"a": Markup("<br>"), "b": "<br>"}) == "<p><br>&lt;br&gt;"


def test_templates_are_filled_in_by_one_function_only() -> None:
    for path in ROOM.glob("*.py"):
        source = path.read_text("utf-8")
        if path.name != "markup.py":
            assert "substitute(" not in source, path.name
            assert "html.escape" not in source, path.name
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "Markup":
                said = ast.unparse(node)
                for unsafe in ("title", "owner", "reason", "message", "output", "link(", "environ"):
                    assert unsafe not in said or "parts." in said, f"{path.name}: {said}"


def titles(value: str) -> dict[str, str]:
    return {"path": f"/{quote(value, safe='')}", "query": value.replace("#", "").replace("&", ";")}


def pages(value: str, **options: Any) -> Iterator[tuple[str, str]]:
    """Yield each page of a job of which all that others choose is *value*, and the list of jobs."""

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        print(value)
        progress(1, 2, value)
        if "raises" in environ["QUERY_STRING"]:
            raise RuntimeError(value)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [value.encode()]

    with BackgroundMiddleware(
        app,
        when=marks.always,
        owner=owners.header("X-User"),
        dashboard="/_jobs",
        authorize=lambda environ: True,
        executor=ThreadExecutor(drain=0.0),
        **options,
    ) as site:
        client = InProcess(site)
        headers = {"accept": "text/html", "x_user": value, "accept_language": value, "user_agent": value}
        for way in ("answers", "raises"):
            path, query = titles(value)["path"], titles(value)["query"]
            target = start(client, f"{path}?{way}={query}", x_user=value)
            ended(site, f"{target}")
            yield way, client.request("GET", target, **headers).text
            yield f"{way}, cancelled", client.request("GET", f"{target}&_view=page&x={query}", **headers).text
        yield "dashboard", client.request("GET", "/_jobs", **headers).text


def own(parts: PageParts) -> str:
    return f"<!doctype html><head>{parts.head}</head><body>{parts.body}</body>"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"assets": "external"},
        {"page": own},
        {"page": own, "assets": "external"},
        {"page": Template("<html><head>$head</head><body title='$title'>$body<p title=\"$output\">$state $output</p>")},
    ],
    ids=["ours", "external", "function", "function, external", "template"],
)
def test_a_page_has_the_same_elements_whatever_others_choose(options: dict[str, Any]) -> None:
    benign, hostile = dict(pages(BENIGN, **options)), dict(pages(HOSTILE, **options))
    assert benign.keys() == hostile.keys()
    for name in benign:
        assert "own()" in hostile[name], "it is there, as text"
        assert shape(hostile[name]) == shape(benign[name]), name
