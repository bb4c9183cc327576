"""The documents say what is: their examples run, their tables have every setting, their links lead somewhere."""

import inspect
import io
import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from bgmiddleware import BackgroundMiddleware, MemoryRegistry, ThreadExecutor, marks, paste
from bgmiddleware.__main__ import _parser
from bgmiddleware._commands.serve import OF_OUR_OWN
from bgmiddleware.executors.process import ProcessExecutor
from bgmiddleware.registries.spool import SpoolRegistry
from tests.conftest import needs
from tests.kit.clients import ended, served
from tests.kit.documents import DOCUMENTS, PAGES, ROOT, SHOP, blocks, get, parsed, run

needs("docutils")
needs("redis")
needs("rq")
needs("celery")

from bgmiddleware.executors.celery import CeleryExecutor  # noqa: E402
from bgmiddleware.executors.rq import RQExecutor  # noqa: E402
from bgmiddleware.registries.redis import RedisRegistry  # noqa: E402


def example(page: str, section: str, language: str = "python", begins: str = "") -> str:
    found = blocks(PAGES[page], language)
    (block,) = [block for block in found if block.section == section and block.text.startswith(begins)]
    return block.text


PLAIN = [path for path in DOCUMENTS if path.name != "api.rst"]  # which is for Sphinx only


@pytest.mark.parametrize("path", PLAIN, ids=lambda path: path.name)
def test_docutils_has_nothing_to_complain_of(path: Path) -> None:
    complaints = io.StringIO()
    parsed(path, complaints)
    assert complaints.getvalue() == ""


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_to_a_file_leads_to_one(path: Path) -> None:
    for target in re.findall(r"<([^<>: ]+\.rst)>`_", path.read_text()):
        assert (path.parent / target).is_file(), target


@pytest.mark.parametrize("path", sorted({*DOCUMENTS, *ROOT.glob("*.rst")}), ids=lambda path: path.name)
def test_no_line_has_more_than_120_characters(path: Path) -> None:
    lines = enumerate(path.read_text("utf-8").splitlines(), 1)
    assert [number for number, line in lines if len(line) > 120] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_all_code_is_python_that_can_be_compiled(path: Path) -> None:
    for block in blocks(path, "python"):
        compile(block.text, f"{path.name}: {block.section}", "exec")


# What is in the tables of settings.rst, by section: the rows, each a list of its cells' texts.


@cache
def settings() -> Any:
    return parsed(PAGES["settings.rst"])


def table(section: str) -> dict[str, list[str]]:
    from docutils import nodes

    for node in settings().findall(nodes.section):
        if node.next_node(nodes.title).astext() == section:
            (body,) = node.findall(nodes.tbody)
            rows = [[entry.astext() for entry in row.findall(nodes.entry)] for row in body.findall(nodes.row)]
            return {row[0]: row[1:] for row in rows}
    raise LookupError(section)


@pytest.mark.parametrize(
    ("section", "described"),
    [
        ("The middleware", BackgroundMiddleware),
        ("MemoryRegistry", MemoryRegistry),
        ("SpoolRegistry", SpoolRegistry),
        ("RedisRegistry", RedisRegistry),
        ("ThreadExecutor", ThreadExecutor),
        ("ProcessExecutor", ProcessExecutor),
        ("RQExecutor", RQExecutor),
        ("CeleryExecutor", CeleryExecutor),
    ],
)
def test_every_argument_is_in_the_settings_with_its_real_default(section: str, described: Callable[..., Any]) -> None:
    real = {
        name: parameter.default
        for name, parameter in inspect.signature(described).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    stated = {name: cells[0] for name, cells in table(section).items()}
    assert stated == {name: _named(default) for name, default in real.items()}


def _named(default: Any) -> str:
    if callable(default):
        return "time.time" if default.__module__ == "time" else str(default.__name__)
    return str(default)


def test_every_key_of_an_ini_file_is_in_the_settings() -> None:
    assert list(table("Keys of an ini file")) == list(paste.SETTINGS)


def test_the_defaults_of_an_ini_file_are_those_of_the_arguments() -> None:
    sections = ("The middleware", "MemoryRegistry", "SpoolRegistry", "RedisRegistry")
    sections += ("ThreadExecutor", "ProcessExecutor", "RQExecutor")
    stated = [name for section in sections for name in table(section)]
    own = {"paths", "registry", "executor", "app"}  # which are spelled otherwise than the arguments
    assert set(paste.SETTINGS) - own <= set(stated)


def test_every_option_of_the_command_line_is_in_the_settings_with_its_real_default() -> None:
    (commands,) = [action for action in _parser()._actions if action.choices]
    assert isinstance(commands.choices, dict)
    options = {
        action.option_strings[-1]: OF_OUR_OWN.get(action.dest, action.default)
        for action in commands.choices["serve"]._actions
        if action.option_strings and action.dest != "help"
    }
    stated = {name.partition(" ")[0]: cells[0] for name, cells in table("The command line").items()}
    assert stated == {name: str(default or "none") for name, default in options.items()}


# The examples.

DJANGO_FILES = (
    (
        "settings.py",
        'SECRET_KEY = "for a test"\nALLOWED_HOSTS = ["*"]\nROOT_URLCONF = "urls"\n',
    ),
    (
        "urls.py",
        "from django.urls import path\nfrom views import report\nurlpatterns = [path('reports/<int:year>', report)]\n",
    ),
)


def test_the_flask_guide_refuses_in_the_foreground_and_reports_in_the_background(tmp_path: Path) -> None:
    needs("flask")
    refused, started = run(tmp_path, example("flask.rst", "Flask"), ["/reports/2026", "/reports/2026?member=yes"])
    assert refused["status"] == "403 FORBIDDEN"
    assert (started["log"], started["result"]) == ("adding up 2026\n", "2026 was a good year\n")


def test_the_bottle_guide_works(tmp_path: Path) -> None:
    needs("bottle")
    (answer,) = run(tmp_path, example("bottle.rst", "Bottle"), ["/reports/2026?user=ada"])
    assert (answer["log"], answer["result"]) == ("adding up 2026 for ada\n", "2026 was a good year\n")


def test_the_django_guide_works(tmp_path: Path) -> None:
    needs("django")
    views = example("django.rst", "Django", begins="from django.http")
    wsgi = example("django.rst", "Django", begins="import os")
    (answer,) = run(tmp_path, wsgi, ["/reports/2026"], *DJANGO_FILES, ("views.py", views))
    assert (answer["log"], answer["result"]) == ("adding up 2026\n", "a good year\n")


def test_the_pyramid_guide_works(tmp_path: Path) -> None:
    needs("pyramid")
    (answer,) = run(tmp_path, example("pyramid.rst", "Pyramid"), ["/reports/2026"])
    assert (answer["log"], answer["result"]) == ("adding up 2026\n", "a good year\n")


def test_the_webpy_guide_is_the_example_of_2008(tmp_path: Path) -> None:
    needs("web")
    (answer,) = run(tmp_path, example("webpy.rst", "web.py"), ["/"])
    lines = answer["log"].splitlines()
    assert lines[0].startswith("Started at ")
    assert lines[1] == "hit f5 to refresh!"
    assert [line.partition(":")[0] for line in lines[2:]] == [str(number) for number in range(10)]


def test_the_guide_from_the_module_of_webpy_works(tmp_path: Path) -> None:
    needs("web")
    (answer,) = run(tmp_path, example("moving.rst", "From web.py's background module"), ["/ada"])
    assert answer["log"] == "hello ada\nline 0\nline 1\nline 2\n"


def test_the_guide_from_waitforit_answers_a_quick_report_directly(tmp_path: Path) -> None:
    (answer,) = run(tmp_path, example("moving.rst", "From WaitForIt"), ["/reports/2026"])
    assert answer == {"status": "200 OK", "body": "a good year\n"}


@pytest.mark.parametrize(
    ("page", "section", "module"),
    [
        ("falcon.rst", "Falcon", "falcon"),
        ("cherrypy.rst", "CherryPy", "cherrypy"),
        pytest.param("dash.rst", "Dash", "dash", marks=pytest.mark.everything),  # it takes seconds to be imported
    ],
)
def test_the_guides_of_other_frameworks_work(page: str, section: str, module: str, tmp_path: Path) -> None:
    needs(module)
    (answer,) = run(tmp_path, example(page, section), ["/reports/2026"])
    assert answer["log"].splitlines()[-1] == "adding up 2026"  # CherryPy's own log comes before it
    assert answer["result"] == "a good year\n"


def test_every_ini_file_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deploy = needs("paste.deploy")
    (tmp_path / "shop.py").write_text(SHOP)
    monkeypatch.syspath_prepend(tmp_path)
    files = [(page, block.text) for page in PAGES.values() for block in blocks(page, "ini")]
    assert len(files) > 3
    for number, (page, text) in enumerate(files):
        if "[app:shop]" not in text:  # settings.rst shows one section of a file
            text += "\n[pipeline:main]\npipeline = background shop\n\n[app:shop]\nuse = call:shop:make_app\n"
        (tmp_path / f"{number}.ini").write_text(text)
        with deploy.loadapp(f"config:{number}.ini", relative_to=str(tmp_path)) as app:
            assert get(app, "/reports/2026")[0] == "303 See Other", page
            assert get(app, "/articles/2026")[0] == "200 OK", page


def test_the_example_of_owners_answers_a_quick_report_as_if_nothing_were_between(tmp_path: Path) -> None:
    (answer,) = run(tmp_path, example("settings.rst", "Owners"), ["/reports/2026"])
    assert answer == {"status": "200 OK", "body": "a good year\n"}


def test_the_example_of_capture_captures(tmp_path: Path) -> None:
    (answer,) = run(tmp_path, example("capture.rst", "What belongs to a job"), ["/reports/2026"])
    assert answer["log"] == "from the view\nfrom its thread\nfrom its child\n"


def test_a_helper_begun_as_shown_is_nobodys_child(tmp_path: Path) -> None:
    text = example("capture.rst", "What scripts should know") + APP_WITH_HELPER
    (answer,) = run(tmp_path, text, ["/reports/2026"])
    assert answer["log"] == "from the job\n"


APP_WITH_HELPER = """
from bgmiddleware import BackgroundMiddleware, marks


def app(environ, start_response):
    done = threading.Event()

    def help():
        print("from the helper")
        done.set()

    begin_helper(help)
    done.wait()
    print("from the job")
    start_response("200 OK", [])
    return []


app = BackgroundMiddleware(app, when=marks.path("/reports/*"))
"""


@pytest.mark.parametrize("section", ["Marks", "Executors", "Registries", "Pages"])
def test_the_examples_of_your_own_run_reports(section: str, tmp_path: Path) -> None:
    reports, other = run(tmp_path, example("extending.rst", section), ["/reports/2026", "/articles/2026"])
    assert (reports["state"], reports["result"]) == ("finished", "a good year\n")
    assert other["status"] == "200 OK"


def test_the_example_of_a_process_per_job_captures_and_answers_as_in_a_thread(tmp_path: Path) -> None:
    text = example("executors.rst", "A process per job").replace("/var/lib/shop", str(tmp_path))
    text = text.replace('"shop.wsgi:app"', '"example:app"').replace("from shop.wsgi import", "from shop import")
    (answer,) = run(tmp_path, text, ["/reports/2026"])
    assert (answer["state"], answer["result"]) == ("finished", "a good year\n")
    assert answer["log"] == "adding up /reports/2026\n"


def test_the_python_client_follows_a_job_and_gets_its_result() -> None:
    client: dict[str, Any] = {}
    exec(example("protocol.rst", "Reading a job"), client)

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        for number in range(3):
            print("line", number)
        start_response("200 OK", [("Content-Type", "application/json")])
        return [b'{"lines": 3}']

    with BackgroundMiddleware(app, when=marks.path("/reports/*")) as middleware, served(middleware) as client_of:
        _, headers, _ = get(middleware, "/reports/2026")
        job = f"http://127.0.0.1:{client_of.port}/reports/2026{headers['Location']}"
        assert b"".join(client["follow"](job)) == b"line 0\nline 1\nline 2\n"
        assert client["result"](job) == {"lines": 3}


def test_the_state_document_is_the_real_one() -> None:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        start_response("204 No Content", [])
        return []

    shown = json.loads(example("protocol.rst", "The state", "json"))
    with BackgroundMiddleware(app, when=marks.always) as middleware:
        _, headers, _ = get(middleware, "/")
        ended(middleware, headers["Location"])
        real = json.loads(get(middleware, f"/{headers['Location']}&_view=status")[2])
    assert _shape(shown) == _shape(real)


def _shape(value: Any) -> Any:
    """Return the names in a document, without those of what may be null."""
    if not isinstance(value, dict):
        return ""
    return {key: "" if key in ("progress", "estimate", "response") else _shape(inner) for key, inner in value.items()}
