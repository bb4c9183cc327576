"""An app whose jobs ask, for processes that load it by its name: ``tests.again.asking_site:app``."""

import os
from typing import Any

from bgmiddleware import BackgroundMiddleware, ask, marks
from bgmiddleware.registries import open_registry

VARIABLE = "BGMIDDLEWARE_TEST_ASKING"


def view(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    if environ["PATH_INFO"] == "/echo":
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))]
    said = input("Go on? ") if environ["PATH_INFO"] == "/input" else ask("Go on?", ("yes", "no"))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [said.encode()]


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(name)
    return BackgroundMiddleware(view, when=marks.always, registry=open_registry(os.environ[VARIABLE]), answers=True)
