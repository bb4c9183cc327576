"""A job's output and state as server-sent events: read by a client that does as WHATWG HTML says."""

import itertools
import random
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from bgmiddleware import Job, MemoryRegistry
from bgmiddleware._jobs import key_of
from bgmiddleware._serving import events
from bgmiddleware.registries.base import END
from tests.kit.apps import WAIT
from tests.kit.clients import ended, start
from tests.kit.readers import BOTH, Client, EventSource, Opener, Play, answering, events_of, opened, print_bytes

EVENTS = {"accept": "text/event-stream"}


@pytest.fixture(params=BOTH)
def opens(request: pytest.FixtureRequest) -> Iterator[Opener]:
    yield from opened(request)


@pytest.fixture
def opens_here(request: pytest.FixtureRequest) -> Iterator[Opener]:
    request.param = "in-process"
    yield from opened(request)


def ended_job(opens: Opener, output: bytes, **options: Any) -> tuple[Client, str]:
    site, client = opens(answering(b"body", output=output), **options)
    target = start(client, "/")
    ended(site, target)
    return client, target


# The stream.


def test_a_stream_says_what_it_is_and_that_nobody_may_keep_or_delay_it(opens: Opener) -> None:
    play = Play()
    site, client = opens(play)
    target = start(client, "/")
    play.begins()
    for job_state in ("running", "finished"):
        for how in (EVENTS, {"accept": "text/event-stream, */*;q=0.1"}):
            with client.stream("GET", target, **how) as (status, sent, _):
                headers = dict(sent)
                assert status == 200
                assert headers["Content-Type"] == "text/event-stream; charset=utf-8"
                assert headers["Cache-Control"] == "no-store, no-transform"
                assert headers["X-Accel-Buffering"] == "no"
                assert headers["Vary"] == "Accept"
                assert headers["Job-State"] == job_state
                assert "Content-Length" not in headers
        if job_state == "running":
            play.answers()
            ended(site, target)


def test_output_comes_as_it_is_printed_and_the_end_is_said(opens: Opener) -> None:
    play = Play()
    _, client = opens(play)
    target = start(client, "/")
    play.begins()
    source = EventSource()
    with client.stream("GET", target, **EVENTS) as (_, _, chunks):
        found: list[Any] = []

        def next_events(count: int) -> list[Any]:
            while len(found) < count:
                found.extend(source.feed(next(chunks)))
            now, found[:] = found[:count], found[count:]
            return now

        (status,) = next_events(1)
        assert (status.kind, status.json["state"]) == ("status", "running")
        for number, end in ((1, 7), (2, 14)):
            play.prints(f"line {number}\n")
            (message,) = next_events(1)
            assert (message.kind, message.id) == ("message", str(end))
            assert message.json == {"offset": end - 7, "text": f"line {number}\n"}
        play.answers()
        (done,) = next_events(1)
        assert (done.kind, done.id, done.json["state"]) == ("done", "14;done", "finished")
        assert next(chunks, None) is None
        assert source.retry == 1000


def test_a_change_of_the_state_is_an_event(opens: Opener) -> None:
    from bgmiddleware import progress

    play = Play()
    _, client = opens(play)
    target = start(client, "/")
    play.begins()
    source = EventSource()
    with client.stream("GET", target, **EVENTS) as (_, _, chunks):
        seen = []
        while not seen:
            seen += source.feed(next(chunks))
        play.does(lambda: progress(1, 4, "rows"))
        play.prints("x")
        while len(seen) < 3:
            seen += source.feed(next(chunks))
        assert [event.kind for event in seen] == ["status", "status", "message"]
        assert seen[1].json["progress"] == {"done": 1, "total": 4, "percent": 25.0, "message": "rows"}


HOSTILE = "a\rb\nc\r\nd\u2028e\u2029f\x85g\0h\x0b\n\ndata: forged\nid: 99\nevent: done\n\n:\ufeff" + "☃𝄞é" * 5


def test_no_text_can_break_the_framing(opens: Opener) -> None:
    client, target = ended_job(opens, HOSTILE.encode())
    body = client.request("GET", target, **EVENTS).body
    assert b"\r" not in body
    message, done = events_of(body)
    assert message.json == {"offset": 0, "text": HOSTILE}
    assert (message.kind, message.id) == ("message", str(len(HOSTILE.encode())))
    assert done.kind == "done"


def test_ids_are_byte_offsets_from_which_a_client_resumes(opens: Opener) -> None:
    text = "☃" * 200_000  # 600,000 bytes: three pieces, none of which cuts a character
    client, target = ended_job(opens, text.encode())
    *messages, done = events_of(client.request("GET", target, **EVENTS).body)
    assert len(messages) == 3
    assert "".join(message.json["text"] for message in messages) == text
    for number, message in enumerate(messages):
        assert int(message.id) == message.json["offset"] + len(message.json["text"].encode())
        again = events_of(client.request("GET", target, last_event_id=message.id, **EVENTS).body)
        assert again[:-1] == messages[number + 1 :]
        by_query = events_of(client.request("GET", f"{target}&_offset={message.id}", **EVENTS).body)
        assert by_query[:-1] == messages[number + 1 :]
    assert done.id == "600000;done"


def test_the_last_event_id_is_nearer_the_truth_than_the_url(opens: Opener) -> None:
    client, target = ended_job(opens, b"0123456789")
    message, _ = events_of(client.request("GET", f"{target}&_offset=2", last_event_id="7", **EVENTS).body)
    assert message.json == {"offset": 7, "text": "789"}


def test_who_has_seen_the_end_is_told_to_stop(opens: Opener) -> None:
    client, target = ended_job(opens, b"abc")
    reply = client.request("GET", target, last_event_id="3;done", **EVENTS)
    assert (reply.status, reply.body) == (204, b"")
    assert "Content-Length" not in reply
    # Who has seen all but the end itself is told of it.
    (done,) = events_of(client.request("GET", target, last_event_id="3", **EVENTS).body)
    assert done.kind == "done"


def test_done_before_the_end_is_read_on(opens: Opener) -> None:
    play = Play()
    _, client = opens(play)
    target = start(client, "/")
    play.prints("abcdef")
    with client.stream("GET", target, last_event_id="3;done", **EVENTS) as (status, _, chunks):
        assert status == 200
        source = EventSource()
        seen: list[Any] = []
        while len(seen) < 2:
            seen += source.feed(next(chunks))
        assert seen[1].json == {"offset": 3, "text": "def"}


@pytest.mark.parametrize(
    "last", ["abc", "-1", "1.5", "9" * 19, ";done", "abc;done", "1;done;done", "0x10", "1 2", "\xb2"]
)
def test_an_id_that_was_never_sent_is_400(opens: Opener, last: str) -> None:
    client, target = ended_job(opens, b"abc")
    reply = client.request("GET", target, last_event_id=last, **EVENTS)
    assert (reply.status, reply["Content-Type"]) == (400, "application/problem+json")
    assert "Last-Event-ID" in reply.json["detail"]


def test_an_id_behind_the_end_goes_on_at_the_end(opens: Opener) -> None:
    play = Play()
    site, client = opens(play)
    target = start(client, "/")
    play.prints("abc")
    with client.stream("GET", target, last_event_id="999", **EVENTS) as (_, _, chunks):
        source = EventSource()
        seen: list[Any] = []
        while not seen:  # the state: the stream has looked at the end
            seen += source.feed(next(chunks))
        play.prints("def")
        play.answers()
        for chunk in chunks:
            seen += source.feed(chunk)
    assert seen[1].json == {"offset": 3, "text": "def"}
    assert seen[-1].id == "6;done"
    ended(site, target)
    (done,) = events_of(client.request("GET", target, last_event_id="999", **EVENTS).body)
    assert (done.kind, done.id) == ("done", "6;done")


def test_what_is_no_utf8_is_replaced_and_offsets_stay_true(opens: Opener) -> None:
    output = b"a\xff\xfe\xe2\x98b\x80\x80\x80\x80\x80c\xf0\x9f\x98"  # it ends within a character
    client, target = ended_job(opens, output)
    message, done = events_of(client.request("GET", target, **EVENTS).body)
    assert message.json["text"] == output.decode("utf-8", "replace")
    assert (message.id, done.id) == (str(len(output)), f"{len(output)};done")


def test_head_tells_the_kind_and_holds_nothing(opens: Opener) -> None:
    play = Play()
    _, client = opens(play, stream_slots=1)
    target = start(client, "/")
    play.begins()
    for _ in range(3):
        reply = client.request("HEAD", target, **EVENTS)
        assert (reply.status, reply["Content-Type"]) == (200, "text/event-stream; charset=utf-8")
    with client.stream("GET", target, **EVENTS) as (status, _, _):
        assert status == 200


def test_without_a_slot_a_client_is_sent_to_poll(opens: Opener) -> None:
    play = Play()
    site, client = opens(play, stream_slots=0)
    target = start(client, "/")
    play.prints("abc")
    reply = client.request("GET", target, **EVENTS)
    assert (reply.status, reply["Content-Type"]) == (503, "application/problem+json")
    assert reply.json["type"] == "urn:bgmiddleware:problem:no-slot"
    assert (reply["Retry-After"], reply["Job-Poll"]) == ("1", "0")
    play.answers()
    ended(site, target)
    assert len(events_of(client.request("GET", target, **EVENTS).body)) == 2, "what has ended needs no slot"


# Time, by hand.


class HandTime:
    """The clock of a stream, which only moves when the stream waits."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.meanwhile = lambda: None

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.meanwhile()


class HandRegistry(MemoryRegistry):
    """A registry where waiting takes no time but that of the *hand*."""

    def __init__(self, hand: HandTime, **options: Any) -> None:
        super().__init__(**options)
        self.hand = hand

    def wait(self, key: str, offset: int, timeout: float) -> Job:
        job = self.get(key)
        if job.output_end <= offset and not job.state.ended:
            self.hand.sleep(timeout)
        return self.get(key)


@pytest.fixture
def hand(monkeypatch: pytest.MonkeyPatch) -> HandTime:
    hand = HandTime()
    monkeypatch.setattr(events, "time", hand)
    return hand


def test_a_quiet_stream_shows_every_five_seconds_that_it_lives_and_ends_after_twenty(
    opens_here: Opener, hand: HandTime
) -> None:
    play = Play()
    _, client = opens_here(play, registry=HandRegistry(hand))
    target = start(client, "/")
    play.begins()
    began = hand.now
    source = EventSource()
    comments = []
    with client.stream("GET", target, **EVENTS) as (_, _, chunks):
        for chunk in chunks:
            before = source.comments
            source.feed(chunk)
            if source.comments > before:
                comments.append(hand.now - began)
    assert comments == [5.0, 10.0, 15.0]
    assert hand.now - began == 20.0


def test_a_stream_that_speaks_needs_no_heartbeat(opens_here: Opener, hand: HandTime) -> None:
    play = Play()
    hand.meanwhile = lambda: play.prints("x")
    _, client = opens_here(play, registry=HandRegistry(hand))
    target = start(client, "/")
    play.begins()
    source = EventSource()
    with client.stream("GET", target, **EVENTS) as (_, _, chunks):
        for chunk in chunks:
            source.feed(chunk)
    assert source.comments == 0


def test_output_events_are_a_tenth_of_a_second_apart(opens_here: Opener, hand: HandTime) -> None:
    play = Play()
    printed = 0

    def print_some() -> None:
        nonlocal printed
        for _ in range(10):
            play.prints(f"{printed}\n")
            printed += 1

    hand.meanwhile = print_some
    _, client = opens_here(play, registry=HandRegistry(hand))
    target = start(client, "/")
    play.begins()
    print_some()
    source = EventSource()
    sent_at, texts = [], []
    with client.stream("GET", target, **EVENTS) as (_, _, chunks):
        for chunk in chunks:
            for event in source.feed(chunk):
                if event.kind == "message":
                    sent_at.append(hand.now)
                    texts.append(event.json["text"])
    assert all(later - earlier >= 0.0999 for earlier, later in itertools.pairwise(sent_at))
    assert len(texts) > 100, "a chatty job is shown ten times a second"
    assert texts[1].count("\n") == 10, "what was printed meanwhile is one event"
    assert "".join(texts) == "".join(f"{number}\n" for number in range("".join(texts).count("\n")))


def test_half_a_character_waits_for_its_other_half(opens_here: Opener, hand: HandTime) -> None:
    play = Play()
    halves = [b"\x98", b"\x83!"]
    site, client = opens_here(play, registry=HandRegistry(hand))
    target = start(client, "/")

    def go_on() -> None:
        if halves:
            play.prints_bytes(halves.pop(0))
        else:
            play.answers()
            MemoryRegistry.wait(site.registry, key_of(target.rpartition("=")[2]), END, WAIT)  # by a real clock

    hand.meanwhile = go_on
    play.prints_bytes(b"a\xe2")
    source, found = EventSource(), []
    with client.stream("GET", target, **EVENTS) as (_, _, chunks):
        for chunk in chunks:
            found += source.feed(chunk)
    messages = [event.json for event in found if event.kind == "message"]
    assert messages == [{"offset": 0, "text": "a"}, {"offset": 1, "text": "☃!"}]
    assert found[-1].id == "5;done"


# A client that never stays.


def gossip(seed: int, pieces: int) -> list[bytes]:
    """Return what a job prints: characters of all lengths, cut anywhere, and now and then what is no UTF-8."""
    choose = random.Random(seed)
    text = b"".join(
        choose.choice([b"a", b"\n", b"\r", "é".encode(), "☃".encode(), "𝄞".encode(), b"\xff", "\u2028".encode()])
        * choose.randrange(1, 40)
        for _ in range(pieces)
    )
    cuts = sorted({0, len(text), *(choose.randrange(len(text)) for _ in range(pieces))})
    return [text[begin:end] for begin, end in itertools.pairwise(cuts)]


def read_restlessly(client: Client, target: str, seed: int, step: Any) -> list[tuple[int, int, str]]:
    """Return where each message begins and ends, and its text, of a client that leaves at any time and comes back with
    its last ID."""
    choose = random.Random(seed)
    found: list[tuple[int, int, str]] = []
    last_id, finished = "", False
    while not finished:
        source = EventSource()
        source.last_id = last_id
        stays = choose.randrange(1, 6)
        headers = {"last_event_id": last_id} if last_id else {}
        with client.stream("GET", target, **headers, **EVENTS) as (status, _, chunks):
            assert status == 200
            for chunk in chunks:
                for event in source.feed(chunk):
                    if event.kind == "message":
                        found.append((event.json["offset"], int(event.id), event.json["text"]))
                        step()
                    finished |= event.kind == "done"
                stays -= 1
                if not stays and not finished:
                    break  # in the middle of a stream; the server is not told
        last_id = source.last_id
    assert client.request("GET", target, last_event_id=last_id, **EVENTS).status == 204
    return found


@pytest.mark.parametrize("seed", range(4))
def test_a_client_that_reconnects_at_random_gets_each_byte_once(
    opens: Opener, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(events, "_APART", 0.0)
    pieces = gossip(seed, 300)
    steps = threading.Semaphore(5)

    def app(environ: Any, start_response: Any) -> list[bytes]:
        for piece in pieces:
            steps.acquire(timeout=WAIT)
            print_bytes(piece)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b""]

    site, client = opens(app, stream_slots=8)
    target = start(client, "/")
    # Each message lets the job print on: client and job go on together, to the end.
    found = read_restlessly(client, target, seed, lambda: steps.release(4))
    ended(site, target)
    whole = b"".join(pieces)
    assert "".join(text for _, _, text in found) == whole.decode("utf-8", "replace")
    at = 0
    for begin, end, text in found:
        assert begin == at, "no byte lost, none twice"
        assert whole[begin:end].decode("utf-8", "replace") == text
        at = end
    assert at == len(whole)


@pytest.mark.parametrize("seed", range(4))
def test_what_was_dropped_is_missing_once_and_nothing_else_is(
    opens: Opener, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(events, "_APART", 0.0)
    pieces = [piece.decode("utf-8", "ignore").encode() for piece in gossip(seed, 300)]
    whole = b"".join(pieces)
    steps = threading.Semaphore(200)  # more than is kept, before anybody looks

    def app(environ: Any, start_response: Any) -> list[bytes]:
        for piece in pieces:
            steps.acquire(timeout=WAIT)
            print_bytes(piece)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b""]

    site, client = opens(app, stream_slots=8, registry=MemoryRegistry(max_output=4000))
    target = start(client, "/")
    found = read_restlessly(client, target, seed, lambda: steps.release(10))
    job = ended(site, target)
    assert job.output_dropped is not None
    missing, at = [], 0
    for begin, end, text in found:
        assert begin >= at, "nothing comes twice"
        assert whole[begin:end].decode("utf-8", "replace") == text
        if begin > at:
            missing.append((at, begin))
        at = end
    assert at == len(whole)
    assert missing
    first, behind = job.output_dropped
    assert all(first <= begin and end <= behind + 3 for begin, end in missing), (
        "3: the rest of a character that was cut"
    )


def test_the_parser_of_these_tests_reads_a_stream_as_a_browser_does() -> None:
    assert [event.data for event in events_of(b"data: a\rdata:b\r\n\ndata: c\n\n: x\n\nevent: y\n\nid: 1\n\n")] == [
        "a\nb",
        "c",
    ]
    source = EventSource()
    assert source.feed(b"id: 5\ndata: half") == []
    assert source.feed(b"\n\n")[0].id == "5"


@pytest.mark.parametrize("is_over", [True, False])
def test_the_first_block_has_data(opens: Opener, is_over: bool) -> None:
    play = Play()
    site, client = opens(play)
    target = start(client, "/")
    if is_over:
        play.answers()
        ended(site, target)
    with client.stream("GET", f"{target}&_view=events") as (_, _, chunks):
        first = next(chunks).partition(b"\n\n")[0].decode().split("\n")
    assert first[0] == "retry: 1000"
    assert any(line.startswith("data: ") for line in first)
    play.answers()
