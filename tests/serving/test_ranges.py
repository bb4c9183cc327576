"""Parts of the output and of the response, conditional requests, and downloads that are taken up again."""

import random
import shutil
import subprocess
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bgmiddleware import BackgroundMiddleware, MemoryRegistry, marks
from tests.conftest import PROMISED
from tests.kit.apps import WAIT
from tests.kit.clients import InProcess, ended, environ, served, start
from tests.kit.readers import BOTH, Client, Opener, Play, answering, opened, print_bytes, so_far

TEXT = "".join(f"line {number}\n" for number in range(10)).encode()
SIZE = len(TEXT)


@pytest.fixture(params=BOTH)
def opens(request: pytest.FixtureRequest) -> Iterator[Opener]:
    yield from opened(request)


@pytest.fixture(params=["log", "result"])
def whole(request: pytest.FixtureRequest, opens: Opener) -> tuple[Client, str]:
    """A client and the target of 70 bytes that will not change: as output, or as a response."""
    is_log = request.param == "log"
    site, client = opens(answering(b"body" if is_log else TEXT, output=TEXT if is_log else b""))
    target = start(client, "/some/report")
    ended(site, target)
    return client, f"{target}&_view={request.param}"


# What is whole.


@pytest.mark.parametrize(
    ("asked", "begin", "end"),
    [
        ("bytes=0-", 0, SIZE),
        ("bytes=7-", 7, SIZE),
        ("bytes=7-13", 7, 14),
        ("bytes=69-69", 69, 70),
        ("bytes=69-999", 69, 70),
        ("bytes=-7", 63, 70),
        ("bytes=-70", 0, 70),
        ("bytes=-999", 0, 70),
        ("Bytes=1-2", 1, 3),
        ("bytes= 1-2 ", 1, 3),
    ],
)
def test_a_range_is_a_part_of_it(whole: tuple[Client, str], asked: str, begin: int, end: int) -> None:
    client, target = whole
    reply = client.request("GET", target, range=asked)
    assert (reply.status, reply.body) == (206, TEXT[begin:end])
    assert reply["Content-Range"] == f"bytes {begin}-{end - 1}/{SIZE}"
    assert reply["Content-Length"] == str(end - begin)
    assert reply["Content-Type"].startswith("text/plain")


def test_the_last_bytes_of_nothing_are_nothing(opens: Opener) -> None:
    site, client = opens(answering(b""))
    target = start(client, "/")
    ended(site, target)
    for view in ("log", "result"):
        reply = client.request("GET", f"{target}&_view={view}", range="bytes=-3")
        assert (reply.status, reply.body) == (200, b"")
        assert client.request("GET", f"{target}&_view={view}", range="bytes=0-").status == 416


def test_a_file_that_the_server_in_front_sends_is_its_own_to_divide(opens: Opener) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        named = ("Content-Disposition", "attachment; filename=rows.csv")
        start_response("200 OK", [("Content-Type", "text/csv"), named, ("X-Accel-Redirect", "/files/rows.csv")])
        return []

    site, client = opens(app)
    target = start(client, "/")
    ended(site, target)
    reply = client.request("GET", f"{target}&_view=result", range="bytes=0-9", if_none_match="*")
    assert (reply.status, reply["X-Accel-Redirect"]) == (200, "/files/rows.csv")
    assert reply["Content-Disposition"] == "attachment; filename=rows.csv"
    assert "ETag" not in reply
    assert "Accept-Ranges" not in reply


@pytest.mark.parametrize("asked", ["bytes=70-", "bytes=70-80", "bytes=999-", "bytes=-0"])
def test_a_range_of_nothing_is_416_and_says_how_much_there_is(whole: tuple[Client, str], asked: str) -> None:
    client, target = whole
    reply = client.request("GET", target, range=asked)
    assert (reply.status, reply.body) == (416, b"")
    assert reply["Content-Range"] == f"bytes */{SIZE}"


@pytest.mark.parametrize(
    "asked",
    [
        "bytes=0-1,5-6",  # several: we need not (RFC 9110 §14.2), and nobody does so with a log
        "bytes=0-1, -5",
        "bytes=-",
        "bytes=--1",
        "bytes=5-2",
        "bytes=a-",
        "bytes=1-x",
        "bytes=1",
        "bytes",
        "",
        "lines=1-2",
        "bytes=" + "9" * 5000 + "-",
        "bytes=\xb2-",
    ],
)
def test_a_range_that_is_none_is_not_heeded(whole: tuple[Client, str], asked: str) -> None:
    client, target = whole
    reply = client.request("GET", target, range=asked)
    assert (reply.status, reply.body) == (200, TEXT)
    assert reply["Accept-Ranges"] == "bytes"


@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT", "QUERY"])
@pytest.mark.filterwarnings("ignore:Unknown REQUEST_METHOD")
def test_ranges_are_for_get(opens: Opener, method: str) -> None:
    site, client = opens(answering(output=TEXT))
    target = start(client, "/")
    ended(site, target)
    reply = client.request(method, target, range="bytes=7-")
    assert (reply.status, reply["Content-Length"]) == (200, str(SIZE))
    assert "Content-Range" not in reply


def test_a_tag_stands_for_exactly_these_bytes(whole: tuple[Client, str]) -> None:
    client, target = whole
    reply = client.request("GET", target)
    tag = reply["ETag"]
    assert reply.body == TEXT
    for asks, status in [
        ({"if_none_match": tag}, 304),
        ({"if_none_match": f"W/{tag}"}, 304),
        ({"if_none_match": f'"a", {tag}, "b"'}, 304),
        ({"if_none_match": "*"}, 304),
        ({"if_none_match": '"other"'}, 200),
        ({"if_match": tag}, 200),
        ({"if_match": "*"}, 200),
        ({"if_match": f"W/{tag}"}, 412),
        ({"if_match": '"other"'}, 412),
        ({"if_match": '"other"', "if_none_match": tag}, 412),
        ({"if_range": tag, "range": "bytes=7-"}, 206),
        ({"if_range": '"other"', "range": "bytes=7-"}, 200),
        ({"if_range": f"W/{tag}", "range": "bytes=7-"}, 200),
        ({"if_range": "Sun, 06 Nov 2094 08:49:37 GMT", "range": "bytes=7-"}, 200),
        ({"if_range": '"other"', "range": "bytes=999-"}, 200),
        ({"if_range": tag, "range": "bytes=999-"}, 416),
        ({"if_range": tag}, 200),
        ({"if_none_match": tag, "range": "bytes=7-"}, 304),
        ({"if_none_match": '"other"', "range": "bytes=7-"}, 206),
        ({"if_modified_since": "Sun, 06 Nov 2094 08:49:37 GMT"}, 200),  # there is no date to compare it with
        ({"if_none_match": "odd"}, 200),
    ]:
        again = client.request("GET", target, **asks)
        assert again.status == status, asks
        assert again.body == {200: TEXT, 206: TEXT[7:]}.get(status, b""), asks
        if status == 304:
            assert again["ETag"] == tag
            assert again["Cache-Control"] == reply["Cache-Control"]
            assert "Content-Length" not in again
            assert "Content-Type" not in again
        if status != 206:
            head = client.request("HEAD", target, **asks)
            assert head.status == (200 if status == 416 else status), asks


MODIFIED, BEFORE, AFTER = (f"Sun, 06 Nov {year} 08:49:37 GMT" for year in (1994, 1988, 2005))


@pytest.mark.parametrize(
    ("asks", "status"),
    [
        ({"if_modified_since": MODIFIED}, 304),
        ({"if_modified_since": AFTER}, 304),
        ({"if_modified_since": BEFORE}, 200),
        ({"if_modified_since": "yesterday"}, 200),
        ({"if_modified_since": MODIFIED, "if_none_match": '"other"'}, 200),
        ({"if_unmodified_since": MODIFIED}, 200),
        ({"if_unmodified_since": AFTER}, 200),
        ({"if_unmodified_since": BEFORE}, 412),
        ({"if_unmodified_since": BEFORE, "if_match": '"mine"'}, 200),
        ({"if_none_match": '"mine"'}, 304),
        ({"if_match": '"mine"'}, 200),
        ({"if_range": MODIFIED, "range": "bytes=7-"}, 206),
        ({"if_range": AFTER, "range": "bytes=7-"}, 200),
        ({"if_range": '"mine"', "range": "bytes=7-"}, 206),
    ],
)
def test_the_validators_of_the_app_are_the_ones_that_count(opens: Opener, asks: dict[str, str], status: int) -> None:
    app = answering(TEXT, headers=[("Last-Modified", MODIFIED), ("ETag", '"mine"'), ("Cache-Control", "max-age=9")])
    site, client = opens(app)
    target = start(client, "/") + "&_view=result"
    ended(site, target)
    reply = client.request("GET", target, **asks)
    assert reply.status == status
    assert (reply["ETag"], reply["Last-Modified"], reply["Cache-Control"]) == ('"mine"', MODIFIED, "max-age=9")
    assert reply.body == {200: TEXT, 206: TEXT[7:]}.get(status, b"")


@pytest.mark.parametrize(("asked", "status"), [("*", 304), ('"any"', 200), ("odd", 200)])
def test_any_is_true_of_a_response_that_has_a_date_only(opens: Opener, asked: str, status: int) -> None:
    site, client = opens(answering(TEXT, headers=[("Last-Modified", MODIFIED)]))
    target = start(client, "/") + "&_view=result"
    ended(site, target)
    reply = client.request("GET", target, if_none_match=asked, if_modified_since=MODIFIED)
    assert reply.status == status
    assert "ETag" not in reply


def test_a_weak_tag_of_the_app_is_no_reason_to_mix_bytes(opens: Opener) -> None:
    site, client = opens(answering(TEXT, headers=[("ETag", 'W/"mine"')]))
    target = start(client, "/") + "&_view=result"
    ended(site, target)
    assert client.request("GET", target, if_none_match='"mine"').status == 304
    assert client.request("GET", target, if_range='W/"mine"', range="bytes=7-").status == 200
    assert client.request("GET", target, if_match='W/"mine"').status == 412


@pytest.mark.parametrize("status", ["201 Created", "404 Not Found", "206 Partial Content"])
def test_only_a_200_has_parts_and_conditions(opens: Opener, status: str) -> None:
    headers = [("Content-Range", "bytes 0-69/100")] if status.startswith("206") else []
    play = Play()
    site, client = opens(play)
    target = start(client, "/") + "&_view=result"
    play.answers(TEXT, status, [*headers, ("Content-Type", "text/plain")])
    ended(site, target)
    reply = client.request("GET", target, range="bytes=7-", if_none_match="*")
    assert (reply.status, reply.body) == (int(status[:3]), TEXT)
    assert "ETag" not in reply


def test_another_run_of_the_same_name_has_another_tag(opens: Opener) -> None:
    now = [1000.0]
    registry = MemoryRegistry(ttl=10.0, clock=lambda: now[0])
    site, client = opens(answering(TEXT, output=TEXT), registry=registry)
    tags = []
    for _ in range(2):
        target = start(client, "/", idempotency_key="k")
        ended(site, target)
        tags += [client.request("GET", f"{target}&_view={view}")["ETag"] for view in ("log", "result")]
        now[0] += 20.0
    assert len(set(tags)) == 4


def test_a_download_of_the_app_is_replayed_as_one(opens: Opener) -> None:
    disposition = 'attachment; filename="r.csv"'
    site, client = opens(answering(b"a;b\n", headers=[("Content-Disposition", disposition)]))
    target = start(client, "/") + "&_view=result"
    ended(site, target)
    for method in ("GET", "HEAD"):
        assert client.request(method, target)["Content-Disposition"] == disposition
    part = client.request("GET", target, range="bytes=2-")
    assert (part.body, part["Content-Disposition"]) == (b"b\n", disposition)


# What is still growing.


def test_parts_of_what_there_is_while_it_runs(opens: Opener) -> None:
    play = Play()
    _, client = opens(play)
    target = start(client, "/")
    play.prints_bytes(TEXT)
    for asked, begin, end in [("bytes=7-", 7, 70), ("bytes=7-13", 7, 14), ("bytes=-5", 65, 70), ("bytes=-99", 0, 70)]:
        reply = client.request("GET", target, range=asked)
        assert (reply.status, reply.body) == (206, TEXT[begin:end])
        assert reply["Content-Range"] == f"bytes {begin}-{end - 1}/*", "how long it will be, nobody knows"
        assert reply["Job-State"] == "running"
        assert "ETag" not in reply, "it is not the same bytes for ever"
    for asked in ("bytes=70-", "bytes=-0"):
        reply = client.request("GET", target, range=asked)
        assert (reply.status, reply["Content-Range"], reply["Retry-After"]) == (416, "bytes */70", "1")
    head = client.request("HEAD", target, range="bytes=7-")
    assert (head.status, head["Content-Length"]) == (200, "70")


@pytest.mark.parametrize(
    "asks", [{"range": "bytes=0-1,5-6"}, {"range": "bytes=-"}, {"range": "bytes=3-", "if_range": '"x"'}]
)
def test_what_is_no_range_is_followed_while_it_runs(opens: Opener, asks: dict[str, str]) -> None:
    play = Play()
    _, client = opens(play)
    target = start(client, "/")
    play.prints("abc")
    with client.stream("GET", target, **asks) as (status, _, chunks):
        assert status == 200
        assert next(chunks) == b"abc"
        play.answers()
        assert next(chunks, None) is None


@pytest.mark.parametrize("is_over", [False, True])
def test_of_output_with_a_gap_there_are_no_parts(opens: Opener, is_over: bool) -> None:
    play = Play()
    site, client = opens(play, registry=MemoryRegistry(max_output=20), stream_slots=0)
    target = start(client, "/")
    play.prints_bytes(TEXT)
    if is_over:
        play.answers()
        ended(site, target)
    reply = client.request("GET", target, range="bytes=5-") if is_over else so_far(client, target, range="bytes=5-")
    gap = b"\n[\xe2\x80\xa6 50 bytes of output were dropped here: 10 to 60 \xe2\x80\xa6]\n"
    assert (reply.status, reply.body) == (200, TEXT[:10] + gap + TEXT[60:]), "offsets are no positions in this"
    assert is_over or reply["Accept-Ranges"] == "none"
    assert "ETag" not in reply


def test_a_part_whose_bytes_are_dropped_on_the_way_breaks_off() -> None:
    chatter = b"x" * 600_000
    play = Play()
    with BackgroundMiddleware(play, when=marks.always, registry=MemoryRegistry(max_output=len(chatter))) as site:
        client = InProcess(site)
        target = start(client, "/")
        play.prints_bytes(chatter)
        with client.stream("GET", target, range="bytes=1-") as (status, _, chunks):
            assert status == 206
            next(chunks)
            play.prints_bytes(b"y" * 400_000)  # what comes next in this part is gone
            with pytest.raises(OSError, match="not there any more"):
                list(chunks)
        play.answers()


# Real download managers.


def tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        if PROMISED:
            raise AssertionError(f"{name} was promised")
        pytest.skip(f"needs {name}")
    return path


class Chatter:
    """A job that prints so much each time it is let."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces
        self.go = threading.Semaphore(0)
        self.gone = threading.Semaphore(0)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        for piece in self._pieces:
            assert self.go.acquire(timeout=WAIT)
            print_bytes(piece)
            self.gone.release()
        assert self.go.acquire(timeout=WAIT)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b""]


@pytest.mark.parametrize("name", ["curl", "wget"])
def test_a_download_that_is_taken_up_again_and_again_is_whole(name: str, tmp_path: Path) -> None:
    path = tool(name)
    choose = random.Random(3)
    pieces = [choose.randbytes(choose.randrange(1, 60_000)) for _ in range(12)]
    chatter = Chatter(pieces)
    file = tmp_path / "out.log"
    with BackgroundMiddleware(chatter, when=marks.always) as site, served(site) as client:
        target = start(client, "/")
        url = f"http://127.0.0.1:{client.port}{target}"
        command = {
            "curl": [path, "-sS", "-C", "-", "-o", str(file), url],
            "wget": [path, "-q", "-c", "-O", str(file), url],
        }[name]
        # A first part, so that there is something to take up: without one a client follows to the end.
        chatter.go.release()
        chatter.gone.acquire(timeout=WAIT)
        file.write_bytes(client.request("GET", target, range="bytes=0-99").body)
        assert file.stat().st_size == 100
        so_far = pieces[0]
        for number in range(1, len(pieces) + 1):
            done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT)
            assert done.returncode == 0, done.stderr
            assert file.read_bytes() == so_far
            # Once more with nothing new: 416 must not spoil what is there.
            subprocess.run(command, capture_output=True, timeout=WAIT)
            assert file.read_bytes() == so_far
            chatter.go.release()
            if number < len(pieces):
                chatter.gone.acquire(timeout=WAIT)
                so_far += pieces[number]
        ended(site, target)
        for _ in range(2):
            subprocess.run(command, capture_output=True, timeout=WAIT)
            assert file.read_bytes() == b"".join(pieces)


@pytest.mark.parametrize("name", ["curl", "wget"])
def test_a_download_that_was_killed_is_taken_up(name: str, tmp_path: Path) -> None:
    path = tool(name)
    file = tmp_path / "out.log"
    play = Play()
    with BackgroundMiddleware(play, when=marks.always) as site, served(site) as client:
        target = start(client, "/")
        url = f"http://127.0.0.1:{client.port}{target}"
        command = {
            "curl": [path, "-sS", "-N", "-C", "-", "-o", str(file), url],
            "wget": [path, "-c", "-O", str(file), url],
        }[name]
        play.prints("a" * 100_000)
        follower = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        with follower:
            for _ in iter(lambda: file.exists() and file.stat().st_size > 0, True):
                assert follower.poll() is None
            follower.kill()
        play.prints("b" * 100_000)
        subprocess.run(command, capture_output=True, timeout=WAIT)
        assert file.read_text() == "a" * 100_000 + "b" * 100_000
        play.prints("c" * 100_000)
        play.answers()
        ended(site, target)
        subprocess.run(command, capture_output=True, timeout=WAIT)
        assert file.read_text() == "".join(letter * 100_000 for letter in "abc")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/reports/2026", "reports-2026"),
        ("/", "output"),
        ("/..", "output"),
        ("/../../etc/passwd", "etc-passwd"),
        ("/a%22;%20filename=evil.exe", "a-filename-evil.exe"),
        ("/%0d%0aX-Evil:%201", "X-Evil-1"),
        ("/%C3%BCber/%E2%98%83", "ber"),
        ("/%FF%FE", "output"),
        ("/.htaccess", "htaccess"),
        ("/a/b.csv", "a-b.csv"),
        ("/" + "x" * 300, "x" * 80),
        ("/nul%00byte", "nul-byte"),
    ],
)
def test_output_is_saved_under_a_sensible_name(opens: Opener, path: str, name: str) -> None:
    site, client = opens(answering(output=b"x"))
    target = start(client, path)
    ended(site, target)
    reply = client.request("GET", target)
    assert reply["Content-Disposition"] == f'inline; filename="{name}.log"'


# What is large.


def test_a_large_response_is_replayed_in_little_memory() -> None:
    megabyte = random.Random(1).randbytes(1 << 20)

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Type", "application/octet-stream")])
        for _ in range(50):
            yield megabyte

    with BackgroundMiddleware(app, when=marks.always) as site:
        client = InProcess(site)
        tracemalloc.start()
        try:
            target = start(client, "/") + "&_view=result"
            ended(site, target)
            for asked, begin, size in ((None, 0, 50 << 20), ("bytes=1048575-41943040", (1 << 20) - 1, 40894466)):
                with client.stream("GET", target, **({"range": asked} if asked else {})) as (status, _, chunks):
                    assert status == (206 if asked else 200)
                    at = begin
                    for chunk in chunks:
                        here = at % (1 << 20)
                        assert (megabyte * 2)[here : here + len(chunk)] == chunk
                        at += len(chunk)
                assert at == begin + size
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 8 << 20, "the 2 MiB to compare with, some pieces, and no body"


def test_a_large_response_is_whole_over_http(tmp_path: Path) -> None:
    megabyte = random.Random(2).randbytes(1 << 20)

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Type", "application/octet-stream")])
        for _ in range(50):
            yield megabyte

    with BackgroundMiddleware(app, when=marks.always) as site, served(site) as client:
        target = start(client, "/") + "&_view=result"
        ended(site, target)
        count = 0
        with client.stream("GET", target) as (_, headers, chunks):
            assert ("Content-Length", str(50 << 20)) in headers
            for chunk in chunks:
                count += len(chunk)
        assert count == 50 << 20
        part = client.request("GET", target, range="bytes=-1000")
        assert (part.status, part.body) == (206, megabyte[-1000:])


def test_the_head_of_what_is_large_reads_nothing_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with BackgroundMiddleware(answering(b"x" * 1_000_000), when=marks.always) as site:
        client = InProcess(site)
        target = start(client, "/") + "&_view=result"
        ended(site, target)
        monkeypatch.setattr(site.registry, "read", None)
        assert client.request("HEAD", target)["Content-Length"] == "1000000"
        given = environ("GET", target, if_none_match="*")
        assert list(site(given, lambda *head: None)) == []
