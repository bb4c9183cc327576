"""One kit of rows for every server: what is promised of a job, asked of a real process that serves it.

Each row is a function of a running site. It returns if all is right, raises ``Limit`` where a server cannot do it and
says so politely, and fails by an assertion where something is wrong.
"""

import contextlib
import hashlib
import http.client
import itertools
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bgmiddleware._jobs import key_of
from bgmiddleware.registries.spool import SpoolRegistry
from tests.kit.clients import Reply
from tests.kit.processes import LONG, Server
from tests.kit.readers import events_of, sent, token_of
from tests.kit.served_site import ODD_BODY, ODD_HEADERS, ODD_STATUS

from .lineup import Candidate

__all__ = ["ENDINGS", "ROWS", "Limit", "ended_by_sigterm", "opened", "ready", "running_site", "waiting"]


class Limit(Exception):
    """A server cannot do what a row asks for, and its client is told so."""


@contextlib.contextmanager
def running_site(candidate: Candidate, directory: Path) -> Iterator[Server]:
    """Run the site on a server until the end of the block."""
    server = candidate.start(directory)
    try:
        ready(server)
        yield server
    finally:
        server.kill()


def ready(server: Server) -> None:
    """Wait until it answers."""
    until = time.monotonic() + LONG
    while True:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if server.request("GET", "/fast").status == 200:
                return
        assert time.monotonic() < until, server.log
        assert server.process.poll() is None, server.log
        time.sleep(0.02)


_gates = itertools.count()


def _gate() -> str:
    return f"gate-{next(_gates)}"


def waiting(server: Server, gate: str) -> str:
    """Start a job that waits for *gate*; return its target when it runs."""
    target = server.started(f"/x/wait?{gate}")
    server.begun(target)
    return target


def opened(server: Server, gate: str) -> None:
    (server.directory / gate).touch()


def _prefix(server: Server) -> str:
    return getattr(server, "prefix", "")  # where a proxy has the site


@contextlib.contextmanager
def _asked(server: Server, target: str, method: str = "GET") -> Iterator[socket.socket]:
    request = f"{method} {_prefix(server)}{target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    with sent(server.port, request.encode()) as connection:
        yield connection


def _received(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65536), b""))


def _begun(connection: socket.socket) -> None:
    """Read what a follower gets at first: a line, or all of an answer that is no live one."""
    data = b""
    while not (b"begun" in data or b"still here" in data) or b"retry-after" in data.lower():
        more = b""
        with contextlib.suppress(ConnectionResetError):  # it broke off: what we look for was not in it
            more = connection.recv(65536)
        if not more:
            return
        data += more


# The rows.


def start(server: Server) -> None:
    """A marked request is redirected at once; an unmarked one goes to the app."""
    assert server.request("GET", "/fast").text == "fast\n"
    reply = server.request("POST", "/x/count?3", b"x" * 1_000_000)
    assert reply.status == 303
    target = "/x/count" + reply["Location"]
    assert server.ended(target)["state"] == "finished"
    assert server.request("GET", target).text == "line 0\nline 1\nline 2\n"
    assert server.request("GET", f"{target}&_view=result").body == b"3 lines\n" + b"x" * 1_000_000


def live(server: Server) -> None:
    """Lines arrive as they are printed, to the end of the job."""
    target = waiting(server, gate := _gate())
    with server.stream("GET", target) as (status, headers, chunks):
        assert status == 200
        first = next(chunks)
        assert first.strip(b"\r") == b"begun\n"
        is_refused = "Retry-After" in Reply(0, headers, b"")
        opened(server, gate)
        with contextlib.suppress(http.client.IncompleteRead, ConnectionResetError):
            rest = b"".join(chunks)
    server.ended(target)
    if is_refused:
        raise Limit("not live")
    assert rest.strip(b"\r") == b"ended\n"


def events(server: Server) -> None:
    """Events arrive as they come, or a polite refusal does."""
    target = waiting(server, gate := _gate())
    with server.stream("GET", f"{target}&_view=events") as (status, headers, chunks):
        data = b""
        if status == 200:
            while b"begun" not in data:
                data += next(chunks)
        opened(server, gate)
        data += b"".join(chunks)
    server.ended(target)
    if status == 503:
        assert "Retry-After" in Reply(0, headers, b"")
        raise Limit("no events")
    last = events_of(data)[-1]
    assert (last.kind, last.json["state"]) == ("done", "finished")


def offsets(server: Server) -> None:
    """The output is had by offsets and by ranges."""
    target = server.started("/x/count?300")
    server.ended(target)
    whole = "".join(f"line {number}\n" for number in range(300)).encode()
    page = server.request("GET", f"{target}&_offset=7")
    assert (page.body, page["Job-Next-Offset"]) == (whole[7:], str(len(whole)))
    part = server.request("GET", target, Range="bytes=5-20")
    assert (part.status, part.body) == (206, whole[5:21])
    assert server.request("GET", f"{target}&_offset=-5").body == whole[-5:]


def result(server: Server) -> None:
    """The result is the app's own: status, reason, headers and body, byte for byte."""
    target = server.started("/x/odd")
    server.ended(target)
    with _asked(server, f"{target}&_view=result") as connection:
        head, _, body = _received(connection).partition(b"\r\n\r\n")
    reply = server.request("GET", f"{target}&_view=result")
    assert reply.body == ODD_BODY
    assert b"chunked" in head.lower() or body == ODD_BODY
    assert head.split(b"\r\n")[0].partition(b" ")[2].startswith(b"207")
    for name, value in ODD_HEADERS:
        found = ", ".join(text for key, text in reply.headers if key.lower() == name.lower())  # as some join them
        assert value in found, reply.headers
    assert server.request("GET", f"{target}&_view=result").body == ODD_BODY, "again and again"
    if ODD_STATUS.encode() not in head:
        raise Limit("its own reason phrase")


def head(server: Server) -> None:
    """HEAD gets headers, no body, and is never held."""
    target = waiting(server, gate := _gate())
    for query in ("", "&_view=events", "&_view=result&_wait=30", "&_view=status"):
        with _asked(server, target + query, "HEAD") as connection:
            said, _, body = _received(connection).partition(b"\r\n\r\n")
        assert said.startswith(b"HTTP/1."), said
        assert body in (b"", b"0\r\n\r\n"), "waitress says that there are no chunks"
    opened(server, gate)
    server.ended(target)


def large(server: Server) -> None:
    """A body of 50 MB comes back whole."""
    query = f"{25 * 1024 * 1024 - 1}"
    target = server.started(f"/x/large?{query}")
    server.ended(target)
    digest, size = hashlib.sha256(), 0
    with server.stream("GET", f"{target}&_view=result") as (status, headers, chunks):
        assert status == 200
        for chunk in chunks:
            digest.update(chunk)
            size += len(chunk)
    assert size == int(Reply(status, headers, b"")["Content-Length"]) == 50 * 1024 * 1024 - 1
    assert digest.digest() == _digest(query)
    part = server.request("GET", f"{target}&_view=result", Range="bytes=1000000-1000009")
    assert part.body == _made(query)[1_000_000:1_000_010]


_kept: dict[str, tuple[bytes, bytes]] = {}


def _made(query: str) -> bytes:
    if query not in _kept:
        made = random.Random(query).randbytes(int(query)).hex().encode() + b"\n"
        _kept[query] = made[:2_000_000], hashlib.sha256(made).digest()
    return _kept[query][0]


def _digest(query: str) -> bytes:
    _made(query)
    return _kept[query][1]


def leaving(server: Server) -> None:
    """Clients that leave give their slots back: of a job that prints, and of one that is silent."""
    loud, silent = server.started("/x/stay?leaving"), waiting(server, gate := _gate())
    has_slots = _serves_live(server, silent)
    for target in (loud, silent):
        for _ in range(12):
            with _asked(server, target) as connection:
                _begun(connection)
    until = time.monotonic() + LONG
    while has_slots and not _serves_live(server, silent):
        assert time.monotonic() < until, "somebody who left is still counted"
    server.request("DELETE", loud)
    opened(server, gate)
    server.ended(loud)
    server.ended(silent)


def _serves_live(server: Server, target: str) -> bool:
    with contextlib.suppress(http.client.RemoteDisconnected), server.stream("GET", target) as (_, headers, _):
        return "Retry-After" not in Reply(0, headers, b"")
    return False


def followers(server: Server) -> None:
    """Eight viewers leave room for an unrelated view, and none of them takes a refusal for the end."""
    target = waiting(server, gate := _gate())
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            _begun(stack.enter_context(_asked(server, target)))
        assert server.request("GET", "/fast").text == "fast\n"
        for connection in [stack.enter_context(_asked(server, target)) for _ in range(3)]:
            _begun(connection)
        opened(server, gate)
    server.ended(target)


_SAYS_NO_END = b"this answer ends here"


def refusal(server: Server) -> None:
    """Where nobody can be served live any more, curl exits with an error: no script takes what there is for all."""
    curl = shutil.which("curl")
    assert curl, "needs curl"
    target = waiting(server, gate := _gate())
    url = f"http://127.0.0.1:{server.port}{_prefix(server)}{target}"
    for version in ("--http1.1", "--http1.0"):
        with contextlib.ExitStack() as stack:
            for _ in range(40):
                try:
                    _, headers, _ = stack.enter_context(server.stream("GET", target))
                except http.client.RemoteDisconnected:
                    break
                if "Retry-After" in Reply(0, headers, b""):
                    break
            else:
                break  # it has room for all
            done = subprocess.run([curl, "-sS", "-m", "60", version, url], capture_output=True, timeout=LONG)
            # A slot may be free again by now: then curl follows, until it has enough or the text says that it is held
            # no longer.
            assert done.returncode != 0 or _SAYS_NO_END in done.stdout, (version, done.stdout)
            assert done.stdout.startswith(b"begun\n") or not done.stdout
    opened(server, gate)
    server.ended(target)


def cancel(server: Server) -> None:
    """A cancel reaches the job."""
    target = server.started("/x/stay?cancel")
    server.begun(target, "still here\n")
    assert server.request("DELETE", target).status == 202
    assert server.ended(target)["state"] == "cancelled"
    assert server.request("GET", f"{target}&_view=result").status == 410


def decorator(server: Server) -> None:
    """A decorated function runs in the background."""
    reply = server.request("POST", "/decorated")
    assert reply.status == 303
    target = "/decorated" + reply["Location"]
    assert server.ended(target)["state"] == "finished"
    assert server.request("GET", target).text == "begun by a decorator\n"
    assert server.request("GET", f"{target}&_view=result").text == "done by a decorator"


def idempotency(server: Server) -> None:
    """A repeated request with an Idempotency-Key finds its job."""
    asked = {"Idempotency_Key": "of the kit"}
    owned = {"Idempotency_Key": "of the kit", "X_User": "ada"}
    found = {}
    for who, headers in {"anybody": asked, "ada": owned}.items():
        replies = [server.request("POST", "/x/count?2", b"a", **headers) for _ in range(2)]
        found[who] = replies[0]["Location"] == replies[1]["Location"]
    assert found["ada"]
    assert server.request("POST", "/x/count?2", b"b", **owned).status == 422
    if not found["anybody"]:
        raise Limit("joined with an owner only")


ROWS: tuple[Callable[[Server], None], ...] = (
    start,
    live,
    events,
    offsets,
    result,
    head,
    large,
    leaving,
    followers,
    refusal,
    cancel,
    decorator,
    idempotency,
)
ENDINGS = ("sigterm", "watched")


def ended_by_sigterm(candidate: Candidate, server: Server, *, watched: bool) -> None:
    """At SIGTERM a running job gets time to end: alone, or *watched* by a follower."""
    target = waiting(server, "sigterm")
    with contextlib.ExitStack() as stack:
        if watched:
            _begun(stack.enter_context(_asked(server, target)))
        server.send(signal.SIGTERM)
        _until_it_stops(server)
        opened(server, "sigterm")
        server.wait()
    if candidate.of_system:  # whose spool is another user's
        with running_site(candidate, server.directory) as again:
            state = again.ended(target)
        if state["reason"] == "its runner vanished":
            raise Limit("ends at once")
        assert state["state"] == "finished", state
        return
    with SpoolRegistry(server.directory / "jobs") as registry:
        job = registry.get(key_of(token_of(target)))
    if job.state.value == "running":  # until its lease runs out
        raise Limit("ends at once")
    assert job.state.value == "finished", job.reason


_HEARD = (
    "heard SIGTERM",
    "SIGINT/SIGTERM received",
    "Handling signal: term",
    "Stopping: jobs",
    "Stopping process 'site'",
    "Destroying interpreters",
    "Shutting down",
)


def _until_it_stops(server: Server) -> None:
    """Wait until the server has heard the signal: it takes no connection any more, or says so, or has ended."""
    until = time.monotonic() + 5
    while time.monotonic() < until and server.process.poll() is None:
        if any(said in server.log for said in _HEARD):
            return
        try:
            socket.create_connection(("127.0.0.1", server.port), 1).close()
        except OSError:
            return
        time.sleep(0.02)
