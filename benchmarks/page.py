"""The live page: how large it is, and how soon a person sees the end of a finished log of 9 MB, in a real Chromium.

``python -m benchmarks.page``. Budgets: all of the page but the output is less than 45 kB; the end is in sight within a
second, first as the server sent it, then as the terminal draws it. "Load all" and the longest stall are printed too.
"""

import argparse
import contextlib
import re
import statistics
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any
from urllib.request import Request, urlopen

from bgmiddleware import BackgroundMiddleware, marks, step
from bgmiddleware._server import serve
from bgmiddleware._serving import assets
from bgmiddleware._serving.shorten import shortened

from ._chromium import chromium
from ._measure import header, verdict

__all__ = ["main"]

_MOST_BYTES = 45_000
_MOST_MS = 1000.0
_LINE = "\x1b[3{colour}m{number:07}\x1b[0m the quick brown fox jumps over the lazy dog, again and again and again …"

# What a page would not measure by itself: when its terminal has drawn the end of the output, and what kept it busy.
_WATCH = """
window.stalls = [];
new PerformanceObserver((list) => stalls.push(...list.getEntries().map(({duration}) => duration)))
  .observe({type: "longtask", buffered: true});
window.seen = (last) => new Promise((resolve) => {
  const look = () => {
    const text = document.querySelector(".job-live #job-text")?.lastElementChild?.textContent ?? "";
    if (text.includes(last)) requestAnimationFrame(() => setTimeout(() => resolve(performance.now())));
    else setTimeout(look, 10);
  };
  look();
});
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; or be the server."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.page", description=__doc__)
    parser.add_argument("--lines", type=int, default=100_000)
    parser.add_argument("--steps", type=int, default=40, help="within each other")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        serve(BackgroundMiddleware(_app, when=marks.path("/log")), port=0)
        return 0

    with _server() as port:
        url = _finished(port, options.lines, options.steps)
        print(header(f"The live page, and a finished log of {options.lines:,} lines in {options.steps} nested steps"))
        _report_size(_finished(port, 10, 0))  # steps, as output, are what the job says
        with chromium() as browser:
            if browser is None:
                print("no Chromium here, or no playwright: what a person would see is not measured")
            else:
                _report_times(browser, url, options.lines, options.rounds)
    return 0


# The server.


def _app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    lines, steps = map(int, environ["QUERY_STRING"].split("&"))
    with contextlib.ExitStack() as opened:
        for number in range(lines):
            if number < steps:
                opened.enter_context(step(f"Step {number}"))
            print(_LINE.format(colour=number % 8, number=number))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"done"]


@contextlib.contextmanager
def _server() -> Iterator[int]:
    command = [sys.executable, "-m", "benchmarks.page", "--serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline().rpartition(":")[2].partition("/")[0])
        finally:
            process.terminate()


def _finished(port: int, lines: int, steps: int) -> str:
    """Run a job that prints so many lines, in steps within each other; return the URL of it when it has ended."""
    with urlopen(Request(f"http://127.0.0.1:{port}/log?{lines}&{steps}", method="POST"), timeout=300) as followed:
        followed.read()
        return str(followed.url)


# The measures.


def _report_size(url: str) -> None:
    with urlopen(Request(url, headers={"Accept": "text/html"}), timeout=30) as reply:
        page = reply.read().decode()
    output = re.search(r'<pre id="job-text"[^>]*>(.*?)</pre>', page, re.DOTALL)
    assert output is not None
    page = page.replace(output[1], "")
    size = len(page.encode())
    print(f"{'page without the output':44}{size:8,} B     budget < {_MOST_BYTES:,}: {verdict(size, _MOST_BYTES - 1)}")
    parts = {"script": assets.script(), "of it the terminal": _terminal(), "style": assets.style()}
    for name, text in parts.items():
        print(f"  {name:42}{len(text.encode()):8,} B")
    print(f"  {'compressed, for comparison':42}{len(zlib.compress(page.encode(), 6)):8,} B")


def _terminal() -> str:
    return shortened(assets.static("terminal.js"))


def _report_times(browser: Any, url: str, lines: int, rounds: int) -> None:
    measured = [_visit(browser, url, lines) for _ in range(rounds + 1)][1:]  # the first one warms both sides up
    print(f"Chromium {browser.version}, median of {rounds}")
    for name, budget in (("first paint, as the server sent it", _MOST_MS), ("drawn by the terminal", _MOST_MS)):
        value = statistics.median(each[name] for each in measured)
        print(f"{name:44}{value:8.0f} ms    budget ≤ {budget:.0f}: {verdict(value, budget)}")
    for name in ("longest stall until then", "all of it loaded and drawn", "longest stall in that"):
        print(f"{name:44}{statistics.median(each[name] for each in measured):8.0f} ms")


def _visit(browser: Any, url: str, lines: int) -> dict[str, float]:
    context = browser.new_context(viewport={"width": 1200, "height": 750})
    context.set_default_timeout(120_000)
    page = context.new_page()
    page.add_init_script(_WATCH)
    page.goto(url + "&_view=page", wait_until="commit")
    last = f"{lines - 1:07}"
    drawn = page.evaluate("seen", last)
    painted = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    stall = page.evaluate("Math.max(0, ...stalls)")
    page.evaluate("stalls.length = 0")
    begun = page.evaluate("performance.now()")
    page.evaluate("document.querySelector('#job-earlier button').click()")
    page.evaluate("new Promise((ready) => setTimeout(ready))")
    page.wait_for_selector("#job-earlier", state="hidden")
    whole = page.evaluate("seen", last) - begun
    measured = {
        "first paint, as the server sent it": painted,
        "drawn by the terminal": drawn,
        "longest stall until then": stall,
        "all of it loaded and drawn": whole,
        "longest stall in that": page.evaluate("Math.max(0, ...stalls)"),
    }
    context.close()
    return measured


if __name__ == "__main__":
    sys.exit(main())
