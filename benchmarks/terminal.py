"""The live page's terminal, next to what others would take: a log of 10,000, 100,000 and a million lines, and output
that means harm, in a real Chromium.

``python -m benchmarks.terminal``. ``npm install`` in tests/page/terminal installs the others; without that only ours
is measured. Each has a browser of its own, because the memory (PSS) is that of its renderer. ansi_up makes HTML, here
for chunks of lines as we have them, some in each frame; xterm.js keeps all lines as its scroll-back. Budgets of ours:
no stall of half a second in a log of any length, and from 10,000 lines on less memory than xterm.js.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ._chromium import chromium
from ._measure import header, verdict

__all__ = ["main"]

_ROOT = Path(__file__).parent.parent
_STATIC = _ROOT / "bgmiddleware" / "_serving" / "static"
_MODULES = _ROOT / "tests" / "page" / "terminal" / "node_modules"
_MOST_STALL_MS = 500.0

# Each defines an async draw(text, lines).
_OURS = """
const terminal = new Terminal(document.querySelector('main'));
window.draw = (text) => { terminal.write(text); return terminal.drawn; };
"""
_ANSI_UP = """
window.draw = async (text) => {
  const up = new AnsiUp();
  const lines = text.split('\\n');
  let began = performance.now();
  for (let at = 0; at < lines.length; at += 250) {
    const chunk = document.createElement('div');
    chunk.innerHTML = up.ansi_to_html(lines.slice(at, at + 250).join('\\n'));
    document.querySelector('main').append(chunk);
    if (performance.now() - began > 10) {
      await new Promise(requestAnimationFrame);
      began = performance.now();
    }
  }
};
"""
_XTERM = """
window.draw = (text, lines) => {
  const terminal = new Terminal({cols: 120, rows: 40, scrollback: lines, convertEol: true});
  terminal.open(document.querySelector('main'));
  return new Promise((resolve) => terminal.write(text, resolve));
};
"""


class Candidate(NamedTuple):
    script: Path
    style: Path
    glue: str
    kind: str = ""


_CANDIDATES = {
    "ours": Candidate(_STATIC / "terminal.js", _STATIC / "terminal.css", _OURS),
    "ansi_up": Candidate(_MODULES / "ansi_up" / "ansi_up.js", _STATIC / "terminal.css", _ANSI_UP, "module"),
    "xterm.js": Candidate(
        _MODULES / "@xterm" / "xterm" / "lib" / "xterm.js", _MODULES / "@xterm" / "xterm" / "css" / "xterm.css", _XTERM
    ),
}

# What is drawn, as JavaScript: to send it would be measured too.
_LOG = """Array.from({{length: {lines}}}, (_, n) => n % 20 < 9
  ? `\\x1b[3${{n % 8}}mINFO\\x1b[0m ${{n}} ` + 'x'.repeat(68) : `${{n}} ` + 'y'.repeat(73)).join('\\n')"""
_HOSTILE = {
    "a line of 10 MB": "'x'.repeat(1e7 * {share})",
    "two million colours on a line": "'\\x1b[31ma\\x1b[32mb'.repeat(1e6 * {share})",
    "a million true colours on a line": (
        "Array.from({{length: 1e6 * {share}}}, (_, n) => `\\x1b[38;2;${{n % 256}};${{(n >> 8) % 256}};0ma`).join('')"
    ),
    "200,000 jumps of the cursor": "'\\x1b[99999;99999H\\x1b[99999Bx'.repeat(2e5 * {share})",
    "a million combining marks": "'a' + '\\u0301'.repeat(1e6 * {share})",
    "three million returns": "'\\rx'.repeat(3e6 * {share})",
    "a string of 5 MB without an end": "'\\x1b]' + 'x'.repeat(5e6 * {share})",
    "a million empty lines": "'\\n'.repeat(1e6 * {share})",
    "100,000 lines of Japanese": "'普通の日本語のログの行です。これは長い\\n'.repeat(1e5 * {share})",
    "20,000 rows of a Japanese table": "'│ 日本語の名前 │ 🎉 完了 │ 1 │\\n'.repeat(2e4 * {share})",
    "100,000 links": "'\\x1b]8;;http://a.example/\\x07x\\x1b]8;;http://b.example/\\x07y'.repeat(5e4 * {share})",
}

_MEASURE = """async ({{lines}}) => {{
  const text = {text};
  let last = performance.now();
  let stall = 0;
  let on = true;
  const tick = () => {{
    stall = Math.max(stall, performance.now() - last);
    last = performance.now();
    if (on) setTimeout(tick);
  }};
  tick();
  const began = last;
  await draw(text, lines);
  await new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
  on = false;
  return [performance.now() - began, stall];
}}"""


class Measured(NamedTuple):
    painted_ms: float
    stall_ms: float
    megabytes: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.terminal", description=__doc__)
    parser.add_argument("--lines", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--share", type=float, default=1.0, help="of the hostile output, how much")
    options = parser.parse_args(arguments)
    with chromium() as browser:
        if browser is None:
            print("The terminal: no playwright or no Chromium here, so nothing is measured and no budget judged")
            return 0
        print(header(f"The terminal in Chromium {browser.version}"))
    _report_logs(options.lines)
    _report_hostile(options.share)
    return 0


def _report_logs(sizes: Sequence[int]) -> None:
    there = [name for name, candidate in _CANDIDATES.items() if candidate.script.exists()]
    print(f"{'':32}{'painted ms':>12}{'stall ms':>12}{'PSS MB':>12}")
    for lines in sizes:
        found = {name: _measured(name, _LOG.format(lines=lines), lines) for name in there}
        for name, (painted, stall, megabytes) in found.items():
            print(f"{lines:>10,} lines, {name:14}{painted:12,.0f}{stall:12,.0f}{megabytes:12,.0f}")
        ours = found["ours"]
        print(f"{'':12}budget: stall < {_MOST_STALL_MS:.0f} ms: {verdict(ours.stall_ms, _MOST_STALL_MS)}", end="")
        if "xterm.js" in found:
            print(f"; less memory than xterm.js: {verdict(ours.megabytes, found['xterm.js'].megabytes)}", end="")
        print()


def _report_hostile(share: float) -> None:
    for name, text in _HOSTILE.items():
        painted, stall, megabytes = _measured("ours", text.format(share=share), 0)
        print(f"{name:32}{painted:12,.0f}{stall:12,.0f}{megabytes:12,.0f}")


def _measured(name: str, text: str, lines: int) -> Measured:
    script, style, glue, kind = _CANDIDATES[name]
    with chromium() as browser:
        page = browser.new_page()
        page.set_content('<!DOCTYPE html><main class="terminal"></main>')
        page.add_style_tag(path=style)
        page.add_script_tag(content=script.read_text() + glue, type=kind)
        page.wait_for_function("!!window.draw")
        painted, stall = page.evaluate(_MEASURE.format(text=text), {"lines": lines})
        # What is kept, not what happens to lie about.
        page.context.new_cdp_session(page).send("HeapProfiler.collectGarbage")
        return Measured(painted, stall, _pss(browser))


def _pss(browser: Any) -> float:
    """Return the memory, in MB, of the largest renderer: the others are of no page."""
    processes = browser.new_browser_cdp_session().send("SystemInfo.getProcessInfo")["processInfo"]
    return max(_pss_of(process["id"]) for process in processes if process["type"] == "renderer")


def _pss_of(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


if __name__ == "__main__":
    raise SystemExit(main())
