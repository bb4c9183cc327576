"""Flask: ``@backgrounder`` on a view, behind a check of who asks.

The check runs in the foreground first: who does not pass it starts nothing.
"""

import functools
import time
from collections.abc import Callable

from flask import Flask, Response, abort, request

from bgmiddleware import BackgroundMiddleware, backgrounder, track

from . import PAUSE

app = Flask(__name__)


def login_required(view: Callable[[], Response]) -> Callable[[], Response]:
    @functools.wraps(view)
    def check() -> Response:
        who = request.authorization
        if who is None or (who.username, who.password) != ("demo", "demo"):
            abort(Response("Sign in as demo, demo.\n", 401, {"WWW-Authenticate": 'Basic realm="demo"'}))
        return view()

    return check


@app.get("/report")
@login_required
@backgrounder
def report() -> Response:
    user = request.authorization.username if request.authorization else ""
    rows = request.args.get("rows", 10, type=int)
    for row in track(range(rows), "rows"):
        time.sleep(PAUSE / 2)
        print(f"Row {row + 1} of {rows}, for {user}")
    back = '<p><a href="../">All demos</a></p>'
    return Response(f"<!DOCTYPE html><title>Report</title><h1>{rows} rows for {user}</h1>{back}\n")


application = app.wsgi_app = BackgroundMiddleware(app.wsgi_app)  # type: ignore[method-assign]  # as Flask documents it
