"""Plain WSGI: paths say what is slow, and the app knows nothing of it."""

import time
from collections.abc import Callable, Iterator
from typing import Any

from bgmiddleware import BackgroundMiddleware, marks, track

from . import PAUSE


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
    if not environ["PATH_INFO"].startswith("/reports/"):
        start_response("404 Not Found", [("Content-Type", "text/plain; charset=utf-8")])
        yield b"There are only /reports/.\n"
        return
    start_response("200 OK", [("Content-Type", "text/csv; charset=utf-8")])
    yield b"month,revenue\r\n"
    for month in track(range(1, 13), "months"):  # a progress bar on the page of the job
        time.sleep(PAUSE)
        print(f"Month {month} is added up.")
        yield b"%d,%d\r\n" % (month, month * 1000)


application = BackgroundMiddleware(app, when=marks.path("/reports/*"))
