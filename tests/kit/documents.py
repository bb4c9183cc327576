"""Reads the documents of this project and runs the examples in them as a reader would: in a process of its own each."""

import importlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
PAGES = {path.name: path for path in sorted(DOCS.rglob("*.rst"))}
"""The documentation by the names of its pages, which are unique: a test need not say of which kind a page is."""
DOCUMENTS = [ROOT / "README.rst", ROOT / "CHANGES.rst", *PAGES.values()]

# Warnings are errors, but for those that WebOb and Pyramid cause by what they import.
_HARMLESS = ("'cgi' is deprecated", "pkg_resources is deprecated", "Deprecated call to `pkg_resources")
STRICT = ("-W", "error", *(word for message in _HARMLESS for word in ("-W", f"ignore:{message}")))

SHOP = '''
"""The app of somebody else that the examples talk of."""


def app(environ, start_response):
    print("adding up", environ["PATH_INFO"])
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"a good year\\n"]


def make_app(global_conf, **settings):
    return app
'''


@dataclass(frozen=True)
class Block:
    """A block of code: the title of its section, its language (empty: none said) and its text."""

    section: str
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.section}: {self.text.splitlines()[0]}"


def parsed(path: Path, complaints: io.StringIO | None = None) -> Any:
    """Return the document as a docutils tree; what docutils has to complain of goes to *complaints*."""
    from docutils.core import publish_doctree

    return publish_doctree(
        path.read_text("utf-8"),
        source_path=str(path),
        settings_overrides={
            "report_level": 1,
            "halt_level": 5,
            "warning_stream": complaints or io.StringIO(),
            "syntax_highlight": "none",
            "input_encoding": "unicode",
        },
    )


def blocks(path: Path, language: str | None = None) -> list[Block]:
    """Return the code blocks of a document, all or those in one language."""
    return [block for block in _blocks(path) if language in (None, block.language)]


@cache
def _blocks(path: Path) -> list[Block]:
    return list(_blocks_of(path))


def _blocks_of(path: Path) -> Iterator[Block]:
    from docutils import nodes

    for node in parsed(path).findall(nodes.literal_block):
        section = node.parent
        while not isinstance(section, (nodes.section, nodes.document)):
            section = section.parent
        title = next(section.findall(nodes.title)).astext()
        languages = [name for name in node["classes"] if name != "code"]
        yield Block(title, languages[0] if languages else "", node.astext())


def run(directory: Path, example: str, targets: Iterable[str], *files: tuple[str, str]) -> list[dict[str, Any]]:
    """Save *example* as a module, import it in a new process, and send GET requests to the ``app`` in it.

    Each is followed: the answer says its ``status``, and if it went to the background, the job's ``log``, ``state``
    and ``result``. *files* are further files, by name.
    """
    for name, text in (("example.py", example), ("shop.py", SHOP), *files):
        (directory / name).write_text(text, "utf-8")
    done = subprocess.run(
        [sys.executable, *STRICT, __file__, *targets],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    answers: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return answers


def main(targets: list[str]) -> None:
    """Be the process in which an example runs."""
    sys.path.insert(0, os.getcwd())
    example = importlib.import_module("example")
    app = getattr(example, "app", None) or example.application
    print(json.dumps([_followed(app, target) for target in targets]))


def _followed(app: Callable[..., Any], target: str) -> dict[str, Any]:
    status, headers, body = get(app, target)
    answer: dict[str, Any] = {"status": status, "body": body}
    if status == "303 See Other":
        job = target.partition("?")[0] + headers["Location"]
        deadline = time.monotonic() + 120
        while get(app, f"{job}&_view=result&_wait=5")[0] == "202 Accepted":
            assert time.monotonic() < deadline, "the job does not end"
        answer["result"] = get(app, f"{job}&_view=result")[2]
        answer["log"] = get(app, f"{job}&_view=log")[2]
        answer["state"] = json.loads(get(app, f"{job}&_view=status")[2])["state"]
    return answer


def get(app: Callable[..., Any], target: str) -> tuple[str, dict[str, str], str]:
    """Send a GET request to *app* in this process; return status, headers and body."""
    path, _, query = target.partition("?")
    environ: dict[str, Any] = {"PATH_INFO": path, "QUERY_STRING": query, "wsgi.multithread": True}
    setup_testing_defaults(environ)
    environ["wsgi.multithread"] = True
    head: list[Any] = []

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: object = None) -> None:
        head[:] = [status, dict(headers)]

    body = app(environ, start_response)
    text = b"".join(body).decode()
    if hasattr(body, "close"):
        body.close()
    return head[0], head[1], text


if __name__ == "__main__":
    main(sys.argv[1:])
