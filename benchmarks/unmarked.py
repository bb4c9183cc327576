"""What a request that is not marked pays: ns added to one call of an app that does nothing, in this process.

``python -m benchmarks.unmarked``. Budgets are shares of what werkzeug's ProxyFix adds: a fifth for the default and for
one path, a quarter for several marks, 0.4 in a process that uses decorators.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from wsgiref.util import setup_testing_defaults

from werkzeug.middleware.proxy_fix import ProxyFix

from bgmiddleware import BackgroundMiddleware, backgrounder, marks

from ._measure import compared, header, verdict

__all__ = ["main"]

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

_MOST_WHERE_WATCHED = 0.4
_BODY = [b"ok"]
_HEADERS = [("Content-Type", "text/plain")]


def _bare(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response("200 OK", _HEADERS)
    return _BODY


class _Class:
    def __init__(self, app: Application) -> None:
        self.app = app

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        return self.app(environ, start_response)


_OURS: dict[str, Application] = {
    "default: Prefer: respond-async": BackgroundMiddleware(_bare),
    "one path": BackgroundMiddleware(_bare, when=marks.path("/reports/*")),
    "three globs": BackgroundMiddleware(_bare, when=marks.path("/reports/*", "/export/*.csv", "*/slow")),
    "any_of(prefers_async, path)": BackgroundMiddleware(
        _bare, when=marks.any_of(marks.prefers_async, marks.path("/reports/*"))
    ),
}
_OTHERS: dict[str, Application] = {
    "a lambda": lambda environ, start_response: _bare(environ, start_response),
    "a class with __call__": _Class(_bare),
    "werkzeug ProxyFix": ProxyFix(_bare),
}
_WATCHED = "with decorators (watched)"
_BUDGETS = dict(zip((*_OURS, _WATCHED), (0.2, 0.2, 0.25, 0.25, _MOST_WHERE_WATCHED), strict=True))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.unmarked", description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--calls", type=int, default=20_000)
    options = parser.parse_args(arguments)

    best = _measured({"bare": _bare, **_OTHERS, **_OURS}, options.rounds, options.calls)
    # Using a decorator changes what every middleware of the process does, so it comes last, beside its own floor.
    backgrounder(lambda: None)
    watched = _measured(
        {"bare": _bare, "werkzeug ProxyFix": _OTHERS["werkzeug ProxyFix"], _WATCHED: _OURS["one path"]},
        options.rounds,
        options.calls,
    )
    added = {name: ns - best["bare"] for name, ns in best.items() if name != "bare"}
    added_watched = {name: ns - watched["bare"] for name, ns in watched.items() if name != "bare"}

    print(header(f"Unmarked request: ns added to a bare app of {best['bare']:.0f} ns"))
    print(f"{'':34}{'ns':>7}{'× ProxyFix':>12}   budget")
    for name, ns in added.items():
        _print_row(name, ns, added["werkzeug ProxyFix"])
    _print_row(_WATCHED, added_watched[_WATCHED], added_watched["werkzeug ProxyFix"])
    return 0


def _measured(apps: dict[str, Application], rounds: int, calls: int) -> dict[str, float]:
    return compared({name: _caller(app) for name, app in apps.items()}, rounds=rounds, calls=calls)


def _caller(app: Application) -> Callable[[int], None]:
    environ: dict[str, Any] = {}
    setup_testing_defaults(environ)
    environ.update(
        PATH_INFO="/articles/42",
        QUERY_STRING="page=2&sort=name",
        REMOTE_ADDR="127.0.0.1",
        HTTP_USER_AGENT="Mozilla/5.0",
        HTTP_ACCEPT="text/html",
    )

    def start_response(status: str, headers: object, exc_info: object = None) -> None:
        pass

    def call(count: int) -> None:
        for _ in range(count):
            app(environ, start_response)

    return call


def _print_row(name: str, ns: float, proxy_fix: float) -> None:
    ratio, budget = ns / proxy_fix, _BUDGETS.get(name)
    judgement = ""
    if budget is not None:
        judgement = f"   ≤ {budget}: {verdict(ratio, budget, f'unmarked, {name}, × ProxyFix')}"
    print(f"{name:34}{ns:7.0f}{ratio:12.2f}{judgement}")


if __name__ == "__main__":
    sys.exit(main())
