"""What a print costs: in a job, elsewhere while a job runs, and on the raw stream, in ns and as ratios to the latter.

``python -m benchmarks.printing``. Budgets: at most 1.6 × in a job, at most 1.25 × elsewhere. And how many lines a
second one job can print.
"""

import argparse
import io
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO
from wsgiref.util import setup_testing_defaults

from bgmiddleware import BackgroundMiddleware, marks

from ._measure import compared, header, verdict

__all__ = ["main"]

_MOST_IN_A_JOB = 1.6
_MOST_ELSEWHERE = 1.25
_LINE = "x" * 40


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.printing", description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--lines", type=int, default=1_000_000)
    options = parser.parse_args(arguments)

    with _null_console() as raw, _job() as do_in_job:

        def print_raw(count: int) -> None:
            # Where print looks, and an assignment does not reach. Not file=raw: the argument would cost too.
            names = vars(sys)
            front, names["stdout"] = names["stdout"], raw
            _print_lines(count)
            names["stdout"] = front

        best = compared(
            {"raw": print_raw, "in a job": lambda count: do_in_job(_print_lines, count), "elsewhere": _print_lines},
            rounds=options.rounds,
            calls=options.calls,
        )
        begun = time.perf_counter()
        do_in_job(_print_lines, options.lines)
        per_second = options.lines / (time.perf_counter() - begun)

    print(header("One print of 40 characters"))
    print(f"{'':34}{'ns':>7}{'× raw':>12}   budget")
    for name, budget in (("raw", None), ("in a job", _MOST_IN_A_JOB), ("elsewhere", _MOST_ELSEWHERE)):
        ratio = best[name] / best["raw"]
        judgement = "" if budget is None else f"   ≤ {budget}: {verdict(ratio, budget, f'print {name}, × raw')}"
        print(f"{_LABELS[name]:34}{best[name]:7.0f}{ratio:12.2f}{judgement}")
    print(f"One job prints {per_second:,.0f} lines a second.")
    return 0


_LABELS = {
    "raw": "the raw stream",
    "in a job": "in a job",
    "elsewhere": "elsewhere, while the job runs",
}


def _print_lines(count: int) -> None:
    for _ in range(count):
        print(_LINE)


@contextmanager
def _null_console() -> Iterator[TextIO]:
    """Let ``sys.stdout`` be a text file over /dev/null, which the stand-in will stand for; yield another such file,
    of which nobody of ours knows."""
    console = sys.stdout
    with open(os.devnull, "w", encoding="utf-8") as raw, open(os.devnull, "w", encoding="utf-8") as original:
        assert isinstance(original, io.TextIOWrapper)
        sys.stdout = original
        try:
            yield raw
        finally:
            sys.stdout = console


@contextmanager
def _job() -> Iterator[Callable[[Callable[[int], None], int], None]]:
    """Run a job; yield a function that has the job's thread call another one, and waits until it has."""
    wanted = threading.Semaphore(0)
    done = threading.Semaphore(0)
    calls: list[tuple[Callable[[int], None], int] | None] = []

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        done.release()
        while wanted.acquire():
            call = calls.pop()
            if call is None:
                break
            call[0](call[1])
            done.release()
        start_response("204 No Content", [])
        return []

    def do(function: Callable[[int], None], count: int) -> None:
        calls.append((function, count))
        wanted.release()
        done.acquire()

    with BackgroundMiddleware(app, when=marks.always) as middleware:
        environ: dict[str, Any] = {}
        setup_testing_defaults(environ)
        middleware(environ, lambda status, headers, exc_info=None: None)
        done.acquire()  # it runs
        try:
            yield do
        finally:
            calls.append(None)
            wanted.release()


if __name__ == "__main__":
    sys.exit(main())
