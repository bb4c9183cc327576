"""What a job can look like: in colours, with a bar, refused, failed, and one that runs until you cancel it.

One asks its reader, and can be run again, compared with the run before it, and shared. Each browser has its own jobs,
by a signed cookie; the list of all jobs is at ``jobs``.
"""

import html
import itertools
import secrets
import time
from collections.abc import Callable, Iterable
from typing import Any

from bgmiddleware import BackgroundMiddleware, ask, current_job, marks, owners, step, track

from . import PAUSE

INDEX = """<!DOCTYPE html>
<html lang="en">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>What a job can look like</title>
<style>
:root { color-scheme: light dark }
body { font: 16px/1.6 system-ui, sans-serif; margin: 2rem auto; max-width: 40rem; padding: 0 1rem }
</style>
<h1>What a job can look like</h1>
<ul>
<li><a href="build">A build, in colours and with a bar</a>
<li><a href="endless">One that runs until you cancel it</a>
<li><a href="clean">One that asks you. Answer no, then run it again, answer yes, and compare the two; then share it</a>
<li><a href="refused">One that is refused</a>
<li><a href="failed">One that fails</a>
<li><a href="quick">One that is done before you see it</a>
<li><a href="jobs">The list of all jobs</a>
</ul>
<p><a href="../">All demos</a></p>
"""
RESULT = """<!DOCTYPE html>
<html lang="en">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<h1>{title}</h1>
<p><a href="./">Back</a></p>
"""


def build() -> tuple[str, str]:
    current_job().title = "Build of the shop"
    print("\x1b[1mReading\x1b[0m what has changed: \x1b[36m12 modules\x1b[0m, see https://example.com/shop/changes")
    for number in track(range(1, 13), "modules"):
        time.sleep(PAUSE / 2)
        print(f"\x1b[32m✓\x1b[0m module {number:2}  \x1b[2m{number * 31 % 17 + 3} files\x1b[0m")
        if number == 7:
            print("\x1b[33m! module 7 has a function that nobody calls\x1b[0m")
    print("\x1b[1;32mThe shop is built.\x1b[0m")
    return "200 OK", "The shop is built"


def endless() -> tuple[str, str]:
    try:
        for second in itertools.count(1):
            time.sleep(PAUSE)
            print(f"Still here, for the {second}. time. Cancel me.")
    finally:
        print("\x1b[33mCancelled: I put things in order and leave.\x1b[0m")
    return "200 OK", "Nobody gets here"


def clean() -> tuple[str, str]:
    current_job().title = "Clean up the orders"
    with step("Looking"):
        print("14 orders have no customer.")
        print(f"It is {time.strftime('%H:%M:%S')}.")
    if ask("Delete 14 orders?", ("yes", "no")) == "no":
        raise ValueError("nobody wanted to delete them")
    with step("Deleting"):
        for number in track(range(1, 15), "orders"):
            time.sleep(PAUSE / 10)
            print(f"Order {number} is deleted.")
    name = input("What shall the list of them be called? ")
    return "200 OK", f"{name or 'The list'}: 14 orders are deleted"


def refused() -> tuple[str, str]:
    time.sleep(PAUSE * 2)
    print("The form has no price.")
    return "422 Unprocessable Content", "The price is missing"


def failed() -> tuple[str, str]:
    for row in track(range(1, 6), "rows"):
        time.sleep(PAUSE / 2)
        print(f"Row {row} is read.")
    raise ValueError("row 6 has no date: '31.02.2026'")


def quick() -> tuple[str, str]:
    return "200 OK", "That was quick"


VIEWS = {f"/{view.__name__}": view for view in (build, endless, clean, refused, failed, quick)}


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    path = environ["PATH_INFO"]
    if path in VIEWS:
        status, title = VIEWS[path]()
        body = RESULT.format(title=html.escape(title))
    else:
        status, body = ("200 OK", INDEX) if path == "/" else ("404 Not Found", RESULT.format(title="No such page"))
    start_response(status, [("Content-Type", "text/html; charset=utf-8")])
    return [body.encode()]


application = BackgroundMiddleware(
    app,
    when=marks.path(*VIEWS),
    keep_requests=True,  # so that each of them can be run again
    answers=True,  # so that input() asks
    owner=owners.cookie(secrets.token_hex(32)),  # a site has one that it keeps, for all of its processes
    dashboard="/jobs",
    authorize=lambda environ: True,  # a demo has no secrets; a site looks who asks
)
