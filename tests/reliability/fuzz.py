"""Send whatever a client can send, and see that nothing of ours answers 500, hangs, or keeps memory.

``python -m tests.reliability.fuzz 1000000 --seed 1`` calls sites in this process, as a server would, and prints a line
for each 50,000 requests. What breaks is printed with its seed; the status is then other than 0.
"""

import argparse
import contextlib
import faulthandler
import io
import random
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from bgmiddleware import BackgroundMiddleware, MemoryRegistry, ThreadExecutor, current_job, marks, owners, progress
from bgmiddleware._starting import early
from tests.kit.processes import LONG

__all__ = ["Sites", "environ_of", "hostile_bytes", "rss"]

VIEWS = ("status", "log", "page", "result", "events", "cancel", "part", "", "x", "Status", "log%00")
NUMBERS = ("0", "1", "-1", "-0", "+1", " 1", "1 ", "1_0", "0x1", "1e3", "1e400", "nan", "inf", "-inf", "", ".", "1.5")
NUMBERS += ("9" * 30, "9" * 5000, "१", str(2**31), str(2**63), str(2**64), "-" + "9" * 20, "None", "0;1", "1,2")
OTHERS = ("a=b", "a", "=", "%", "%zz", "a=%ff", "_t", "_t=", "a" * 3000, "a=\xe9", "#", "+", "_x=1")
METHODS = ("GET", "GET", "GET", "HEAD", "POST", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "get")
METHODS += ("PROPFIND", "X" * 2000, "CONNECT", "G\xe9T", "")
PATHS = (
    "/x/a",
    "/x/print",
    "/x/a/b",
    "/",
    "",
    "//",
    "/x/",
    "/_jobs",
    "/_jobs/",
    "/x/\x00",
    "/x/\n",
    "/x/\xe9\xff",
    "/plain",
)
PATHS += ("/x/" + "a" * 5000, "/x/../x/a", "*", "/x/%2e%2e", "/x/<script>", "/x/\u0080")
RANGES = (
    "bytes=0-",
    "bytes=0-0",
    "bytes=-1",
    "bytes=1-0",
    "bytes=5-3,1-2",
    "bytes=",
    "bytes",
    "items=0-1",
    "bytes=a-b",
)
RANGES += (
    "bytes=" + ",".join(f"{at}-{at}" for at in range(500)),
    "bytes=0-" + "9" * 400,
    "bytes=--1",
    "bytes=0 - 1",
    "",
)
ACCEPTS = ("*/*", "text/html", "application/json", "text/event-stream", "text/plain;q=0", "text/html;q=2", "a/b/c", "")
ACCEPTS += ("text/html;level=1;q=0.5, */*;q=0.1", ";;;", "text/*;q=nan", "*", ",".join(["text/x"] * 500), "\xe9/\xff")
PREFERS = (
    "respond-async",
    "wait=0",
    "respond-async, wait=0",
    "wait=x",
    "wait=-1",
    "wait=99999999999",
    '"',
    "a=b;c",
    "",
)
TYPES = ("application/x-www-form-urlencoded", "multipart/form-data", "multipart/form-data; boundary=b", "x", "")
TYPES += ('multipart/form-data; boundary="', "multipart/form-data; boundary=" + "b" * 300, "text/plain; charset=\xe9")
LENGTHS = ("0", "5", "-1", "", "x", "1e3", "99999999999999999999", " 5", "+5", "5, 5", "0x5")
DATES = ("Sun, 06 Nov 1994 08:49:37 GMT", "x", "", "Sun, 99 Nov 99999 99:99:99 GMT", "0")
TAGS = ('"x"', 'W/"x"', "*", '"', "", '"a", "b"', "x")
BODIES = (
    b"",
    b"a=1&b=2",
    b"--b\r\n\r\n\r\n--b--",
    b"--b\r\nContent-Disposition: form-data; name=\xff\r\n\r\nx\r\n--b--",
)
BODIES += (b"\x00" * 2000, b"x" * 70_000)
WORDS: dict[str, Sequence[str]] = {
    "HTTP_ACCEPT": ACCEPTS,
    "HTTP_RANGE": RANGES,
    "HTTP_IF_RANGE": (*TAGS, *DATES),
    "HTTP_IF_NONE_MATCH": TAGS,
    "HTTP_IF_MATCH": TAGS,
    "HTTP_IF_MODIFIED_SINCE": DATES,
    "HTTP_PREFER": PREFERS,
    "HTTP_IDEMPOTENCY_KEY": ("key", "", "k" * 255, "k" * 256, "\xe9", '"key"'),
    "HTTP_COOKIE": ("a=b", "bg=x", "=", ";;;", "a=" + "b" * 5000, "\xe9=\xff", 'a="'),
    "HTTP_ORIGIN": ("null", "https://other.example", "", "\xe9"),
    "HTTP_REFERER": ("https://other.example/x", "", "::"),
    "HTTP_HOST": ("localhost", "", "[::1", "a:b:c", "\xe9", "h" * 3000, "a/b"),
    "HTTP_LAST_EVENT_ID": NUMBERS,
    "HTTP_ACCEPT_LANGUAGE": ("de", "en;q=0", "x" * 2000, "de;q=a", "", "*"),
    "HTTP_ACCEPT_ENCODING": ("gzip", "identity;q=0", ""),
    "HTTP_SEC_FETCH_SITE": ("cross-site", "none", ""),
    "HTTP_SEC_FETCH_DEST": ("document", "empty", "iframe", "script"),
    "HTTP_SEC_FETCH_MODE": ("navigate", "cors", "no-cors", "x"),
    "HTTP_SEC_PURPOSE": ("prefetch", "prefetch;prerender", ""),
    "HTTP_HX_REQUEST": ("true", ""),
    "HTTP_X_REQUESTED_WITH": ("XMLHttpRequest", ""),
    "HTTP_X_USER": ("ann", "bob", "", "\xe9"),
    "HTTP_TRANSFER_ENCODING": ("chunked", "gzip, chunked", "identity", "x"),
    "HTTP_EXPECT": ("100-continue", "x"),
    "HTTP_TE": ("trailers", ""),
    "HTTP_CONNECTION": ("close", "keep-alive", "upgrade"),
    "CONTENT_TYPE": TYPES,
    "CONTENT_LENGTH": LENGTHS,
    "SERVER_PROTOCOL": ("HTTP/1.0", "HTTP/1.1", "HTTP/2", "x", ""),
    "REMOTE_ADDR": ("127.0.0.1", "::1", "", "x"),
}
_ANY = "".join(chr(code) for code in (9, *range(0x20, 0x7F), *range(0x80, 0x100)))  # what a header may be made of


class _Broken(io.RawIOBase):
    """The body of a client that went away."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        raise OSError("the client is gone")


def _mutated(chance: random.Random, text: str) -> str:
    """Return a text, now and then with something left out, repeated or put in."""
    if chance.random() < 0.9:
        return text
    at = chance.randrange(len(text) + 1)
    other = "".join(chance.choices(_ANY, k=chance.randrange(1, 8)))
    return chance.choice((text[:at], text[at:], text[:at] + other + text[at:], text * chance.randrange(2, 5), other))


def query_of(chance: random.Random, tokens: Sequence[str]) -> str:
    """Return a query string that may name one of *tokens*."""
    parts = []
    if chance.random() < 0.7:
        token = chance.choice(tokens)
        parts.append(f"_t={_mutated(chance, token)}")
    choices: dict[str, Sequence[str]] = {
        "_view": VIEWS,
        "_offset": NUMBERS,
        "_wait": ("0", *NUMBERS),
        "_every": NUMBERS,
    }
    for name, values in choices.items():
        if chance.random() < 0.3:
            parts.append(f"{name}={_mutated(chance, chance.choice(values))}")
    if chance.random() < 0.2:
        parts.append(
            chance.choice(("a=b", "a", "=", "%", "%zz", "a=%ff", "_t", "_t=", "a" * 3000, "a=\xe9", "#", "+", "_x=1"))
        )
    chance.shuffle(parts)
    return _mutated(chance, "&".join(parts))


def environ_of(chance: random.Random, tokens: Sequence[str]) -> dict[str, Any]:
    """Return a request as a server would hand it over."""
    body = chance.choice(BODIES)
    environ: dict[str, Any] = {
        "REQUEST_METHOD": chance.choice(METHODS),
        "SCRIPT_NAME": chance.choice(("", "", "", "/mounted")),
        "PATH_INFO": _mutated(chance, chance.choice(PATHS)),
        "QUERY_STRING": query_of(chance, tokens),
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": _Broken() if chance.random() < 0.02 else io.BytesIO(body),
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    for name in chance.sample(tuple(WORDS), chance.randrange(6)):
        environ[name] = _mutated(chance, chance.choice(WORDS[name]))
    if environ.get("HTTP_TRANSFER_ENCODING") == "chunked":
        environ.pop("CONTENT_LENGTH")
        environ["wsgi.input_terminated"] = True
    if chance.random() < 0.05:
        environ.pop("QUERY_STRING")
    return environ


def hostile_bytes(chance: random.Random, tokens: Sequence[str]) -> bytes:
    """Return a request as it comes out of a socket: perhaps cut off, or with something else in it."""
    environ = environ_of(chance, tokens)
    path = environ["PATH_INFO"].replace("\n", "%0a").replace("\0", "%00") or "/"
    lines = [f"{environ['REQUEST_METHOD']} {path}?{environ.get('QUERY_STRING', '')} {environ['SERVER_PROTOCOL']}"]
    body = environ["wsgi.input"].read() if isinstance(environ["wsgi.input"], io.BytesIO) else b""
    for name, value in environ.items():
        if name.startswith("HTTP_") or name in ("CONTENT_LENGTH", "CONTENT_TYPE"):
            lines.append(f"{name.removeprefix('HTTP_').replace('_', '-').title()}: {value}")
    if "HTTP_TRANSFER_ENCODING" in environ and chance.random() < 0.8:
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
    data = "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n" + body
    if chance.random() < 0.2:
        at = chance.randrange(len(data) + 1)
        data = data[:at] + chance.choice((b"", b"\r\n", b"\0", bytes(chance.choices(range(256), k=8)))) + data[at:]
    return data[: chance.randrange(len(data) + 1)] if chance.random() < 0.05 else data


def answer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Answer at once, and say how far it is."""
    if current_job():
        print("a line", environ["PATH_INFO"][:20])
        progress(1, 2)
    start_response("200 OK", [("Content-Type", "text/html"), ("ETag", '"x"')])
    return [b"<p>done</p>" * 10]


class Sites:
    """Sites of several kinds, with jobs that ended and one that runs; and what they answered."""

    def __init__(self) -> None:
        self._gate = threading.Event()
        self._begun = threading.Semaphore(0)
        self._stack = contextlib.ExitStack()
        kinds: list[dict[str, Any]] = [
            {},
            {"owner": owners.cookie("a secret of sixteen"), "single_flight": True, "limit_per_owner": 2},
            {"owner": owners.header("X-User"), "dashboard": "/_jobs", "authorize": lambda environ: True},
            {"promote_after": 0.001, "assets": "external", "refuse_cross_site": True, "details": False},
        ]
        self.apps = [self._site(kind) for kind in kinds]
        self._live = {app: self._started(app, "/x/live") for app in self.apps}
        self._latest = {app: deque((self._started(app, "/x/a"),), maxlen=5) for app in self.apps}
        self.statuses: Counter[int] = Counter()

    def _site(self, options: dict[str, Any]) -> BackgroundMiddleware:
        # No connection is held, else it would be for as long as it asks for.
        return self._stack.enter_context(
            BackgroundMiddleware(
                self._answer,
                when=marks.path("/x/*"),
                registry=MemoryRegistry(max_jobs=300, max_bytes=64 * 1024 * 1024),
                executor=ThreadExecutor(max_workers=3, max_pending=50, drain=0.0),
                stream_slots=0,
                **options,
            )
        )

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/x/live" and environ.get("HTTP_X_LIVE"):
            print("it runs")
            self._begun.release()
            self._gate.wait()
        return answer(environ, start_response)

    def _started(self, app: BackgroundMiddleware, path: str) -> str:
        environ = environ_of(random.Random(0), ("",))
        own = {"REQUEST_METHOD": "POST", "PATH_INFO": path, "SCRIPT_NAME": "", "QUERY_STRING": "", "HTTP_X_LIVE": "yes"}
        own |= {"wsgi.input": io.BytesIO(), "CONTENT_LENGTH": "0", "HTTP_PREFER": "respond-async", "HTTP_X_USER": "ann"}
        base = {name: value for name, value in environ.items() if name.startswith(("wsgi.", "SERVER_"))}
        head: list[Any] = []
        for _ in app({**base, **own}, lambda *given: head.append(given)):
            pass
        if path == "/x/live":
            assert self._begun.acquire(timeout=LONG)
        return str(dict(head[0][1])["Location"].rpartition("_t=")[2])

    def tokens(self, app: BackgroundMiddleware) -> list[str]:
        """Return tokens that a client may send: of a job that runs, of the latest, and of another site."""
        return [self._live[app], *self._latest[app], self._live[self.apps[0]]]

    def ask(self, environ: dict[str, Any], app: BackgroundMiddleware) -> str:
        """Ask one of them; return what is wrong with the answer, empty: nothing."""
        given: list[Any] = []
        size = 0
        try:
            chunks = app(environ, lambda *arguments: given.append(arguments))
            try:
                for chunk in chunks:
                    size += len(chunk)
            finally:
                getattr(chunks, "close", lambda: None)()
        except ConnectionError:  # so an answer breaks off that would be taken for a whole one
            pass
        except OSError:
            return "" if isinstance(environ["wsgi.input"], _Broken) else "OSError"
        status, headers = given[-1][0], given[-1][1]
        self.statuses[int(status[:3])] += 1
        if int(status[:3]) >= 500 and int(status[:3]) not in (501, 503):
            return f"{status} {headers}"
        for name, value in [*headers, ("Status", status)]:
            if name == "Location" and value.rpartition("_t=")[2]:
                self._latest[app].append(value.rpartition("_t=")[2])
            if not value.isprintable() and not set(value) <= set(_ANY):
                return f"{name}: {value!r}"
            value.encode("latin-1")
        return "" if size < 2_000_000 else f"{size} bytes"

    def close(self) -> None:
        self._gate.set()
        self._stack.close()


@contextlib.contextmanager
def open_sites() -> Iterator[Sites]:
    """Give sites, of which none waits for an early answer."""
    before = early._GRACE, early._QUEUED
    early._GRACE = early._QUEUED = 0.0
    sites = Sites()
    try:
        yield sites
    finally:
        sites.close()
        early._GRACE, early._QUEUED = before


def fuzz(sites: Sites, seeds: Iterable[int], told: Callable[[int], object] = lambda count: None) -> list[str]:
    """Ask once for each seed; return what is wrong. Ends the process, with all stacks, where a request hangs."""
    wrong = []
    for count, seed in enumerate(seeds, 1):
        if count % 100 == 1:
            faulthandler.dump_traceback_later(LONG, exit=True)
        chance = random.Random(seed)
        app = chance.choice(sites.apps)
        environ = environ_of(chance, sites.tokens(app))
        try:
            said = sites.ask(environ, app)
        except Exception as error:
            said = repr(error)
        if said:
            shown = {name: value for name, value in environ.items() if isinstance(value, str)}
            wrong.append(f"seed {seed}: {said[:500]}: {str(shown)[:1500]}")
        told(count)
    faulthandler.cancel_dump_traceback_later()
    return wrong


def rss() -> int:
    """Return the bytes of memory that this process has in use."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def main() -> int:
    """Fuzz, and print figures."""
    parser = argparse.ArgumentParser(prog="python -m tests.reliability.fuzz", description=__doc__)
    parser.add_argument("number", type=int, help="how many requests")
    parser.add_argument("--seed", type=int, default=1, help="of the first one")
    chosen = parser.parse_args()
    begun = time.monotonic()
    with open_sites() as sites:

        def tell(count: int) -> None:
            if not count % 50_000:
                seconds = time.monotonic() - begun
                print(f"{count} requests, {seconds:.0f} s, {rss() >> 20} MiB, {dict(sites.statuses)}", flush=True)

        wrong = fuzz(sites, range(chosen.seed, chosen.seed + chosen.number), tell)
        for each in wrong[:100]:
            print("WRONG", each)
        print(f"{chosen.number} requests, {len(wrong)} wrong, {dict(sorted(sites.statuses.items()))}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
