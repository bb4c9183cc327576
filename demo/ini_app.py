"""An app that an ini file names; see ``background.ini``, where the middleware is. There is nothing of it here."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from . import PAUSE


def make_app(global_conf: dict[str, str], *, file: str) -> Callable[..., Iterator[bytes]]:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8")])
        for line in Path(file).read_text("utf-8").splitlines():
            time.sleep(PAUSE / 4)
            print(line)  # printed: it is seen while the job runs
            yield line.encode() + b"\n"  # answered: it is part of the response

    return app
