"""The example of 2008: a page, and a function that it leaves behind.

What web.py's ``background`` module did then, for any WSGI app: the page prints, calls a slow function, and the browser
is sent to what both of them print.
"""

import time
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

from bgmiddleware import BackgroundMiddleware, background

from . import PAUSE


@background
def longrunning() -> str:
    for number in range(1, 11):
        time.sleep(PAUSE)
        print(f"{number}: {datetime.now():%H:%M:%S}")
    return "That was it.\n"


def page(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    print(f"Started at {datetime.now():%H:%M:%S}")
    print("hit f5 to refresh!")
    text = longrunning()  # in a request, nothing below is reached: the client is on its way to the output
    start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8")])
    return [text.encode()]


application = BackgroundMiddleware(page)
