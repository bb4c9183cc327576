"""Viewers never starve the app: held connections are counted, the others are paced, and who has left is noticed."""

import contextlib
import fcntl
import heapq
import http.client
import resource
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from bgmiddleware import BackgroundMiddleware, ConfigurationError, marks
from bgmiddleware import _middleware as middleware
from bgmiddleware._serving import events, log, visit
from bgmiddleware._serving.connections import disconnection_of
from bgmiddleware._serving.viewers import Viewers
from tests.kit.apps import WAIT
from tests.kit.clients import InProcess, OverHTTP, Reply, ended, environ, served, start
from tests.kit.readers import BOTH, Client, Opener, Play, answering, opened, sent, so_far


class Watched(Viewers):
    """Counts, and lets a test wait for what it counts."""

    def __init__(self, slots: int | None, **options: Any) -> None:
        super().__init__(slots, **options)
        self.taken = threading.Semaphore(0)
        self.given = threading.Semaphore(0)
        self.free = slots or 0

    def take_slot(self, gone: Callable[[], bool], **options: Any) -> object | None:
        slot = super().take_slot(gone, **options)
        if slot is not None:
            self.free -= 1
            self.taken.release()
        return slot

    def give_back(self, slot: object) -> None:
        held = slot in self._held
        super().give_back(slot)
        self.free += held
        if held:
            self.given.release()


@pytest.fixture
def viewers(monkeypatch: pytest.MonkeyPatch) -> list[Watched]:
    """The viewers of each middleware that is made; and who leaves is noticed soon."""
    made: list[Watched] = []

    def make(slots: int | None) -> Watched:
        made.append(Watched(slots))
        return made[-1]

    monkeypatch.setattr(middleware, "Viewers", make)
    for module in (events, log, visit):
        monkeypatch.setattr(module, "LOOK_EVERY", 0.05)
    return made


@pytest.fixture(params=BOTH)
def opens(request: pytest.FixtureRequest, viewers: list[Watched]) -> Iterator[Opener]:
    yield from opened(request)


# Each way to hold a connection: what follows the target, and the headers.
WAYS: dict[str, tuple[str, dict[str, str]]] = {
    "follow": ("", {}),
    "events": ("&_view=events", {}),
    "the log, waited for": ("&_offset=3&_wait=30", {}),
    "the state, waited for": ("&_view=status&_wait=30", {}),
    "the result, waited for": ("&_view=result&_wait=30", {}),
    "the result, preferred": ("&_view=result", {"prefer": "wait=30"}),
}
ways = pytest.mark.parametrize("way", WAYS)


def ask(client: Client, target: str, way: str) -> Reply:
    query, headers = WAYS[way]
    return client.request("GET", target + query, **headers)


@ways
def test_a_held_connection_takes_one_slot_and_gives_it_back(opens: Opener, viewers: list[Watched], way: str) -> None:
    play = Play()
    site, client = opens(play, stream_slots=2)
    target = start(client, "/")
    play.prints("abc")
    with ThreadPoolExecutor() as pool:
        held: Future[Reply] = pool.submit(ask, client, target, way)
        assert viewers[0].taken.acquire(timeout=WAIT)
        assert viewers[0].free == 1
        play.answers(b"the body")
        reply = held.result(WAIT)
    assert reply.status == 200
    assert viewers[0].given.acquire(timeout=WAIT)
    assert viewers[0].free == 2
    ended(site, target)


@ways
def test_without_a_slot_nobody_is_held(opens: Opener, viewers: list[Watched], way: str) -> None:
    play = Play()
    _, client = opens(play, stream_slots=1)
    target = start(client, "/")
    play.prints("abc")
    with client.stream("GET", target) as (_, _, chunks):
        assert next(chunks) == b"abc"
        # It would hang until the test gives up, if it were held.
        reply = so_far(client, target) if way == "follow" else ask(client, target, way)
        assert reply.status == {"events": 503, "the result, waited for": 202, "the result, preferred": 202}.get(
            way, 200
        )
        assert (reply["Job-Poll"], reply["Retry-After"]) == ("0" if way == "events" else "1", "1")
        if way == "follow":
            assert (reply.text, reply["Job-Next-Offset"]) == ("abc", "3"), "what there is"
        if way == "the result, preferred":
            assert "Preference-Applied" not in reply
        play.answers()
        assert next(chunks, None) is None
    assert viewers[0].given.acquire(timeout=WAIT)
    assert ask(client, target, way).status == 200


def test_who_waits_at_the_start_is_counted_too(opens: Opener, viewers: list[Watched]) -> None:
    play = Play()
    _, client = opens(play, stream_slots=1)
    headers = {"prefer": "wait=30"}
    with ThreadPoolExecutor() as pool:
        held = pool.submit(client.request, "POST", "/", **headers)
        assert viewers[0].taken.acquire(timeout=WAIT)
        refused = client.request("POST", "/", **headers)
        assert refused.status == 303, "at once"
        assert "Preference-Applied" not in refused
        play.answers()
        play.answers()
        assert held.result(WAIT).status == 200
    assert viewers[0].given.acquire(timeout=WAIT)


@ways
def test_a_server_with_one_thread_gives_no_slot(viewers: list[Watched], way: str) -> None:
    play = Play()
    with BackgroundMiddleware(play, when=marks.always, stream_slots=5) as site:
        target = start(InProcess(site), "/")
        play.prints("abc")
        query, headers = WAYS[way]
        given = environ("GET", target + query, **headers)
        given["wsgi.multithread"] = False
        heads: list[Any] = []
        with contextlib.suppress(ConnectionResetError):
            list(site(given, lambda *head: heads.append(head)))  # at once, or the test hangs
        assert ("Job-Poll", "0" if way == "events" else "1") in heads[0][1]
        assert viewers[0].free == 5
        play.answers()


@ways
def test_what_has_ended_and_head_need_no_slot(opens: Opener, viewers: list[Watched], way: str) -> None:
    play = Play()
    site, client = opens(play, stream_slots=1)
    target = start(client, "/")
    play.begins()
    query, headers = WAYS[way]
    assert client.request("HEAD", target + query, **headers).status in (200, 202)
    play.answers()
    ended(site, target)
    assert ask(client, target, way).status == 200
    assert not viewers[0].taken.acquire(blocking=False)


def test_slots_given_back_by_many_are_all_there_again(opens: Opener, viewers: list[Watched]) -> None:
    play = Play()
    site, client = opens(play, stream_slots=3)
    target = start(client, "/")
    play.prints("abc")
    with ThreadPoolExecutor(20) as pool:
        held = [pool.submit(ask, client, target, way) for way in WAYS for _ in range(3)]
        for _ in range(3):
            assert viewers[0].taken.acquire(timeout=WAIT)
        play.answers()
        for reply in held:
            with contextlib.suppress(ConnectionResetError):  # a log that broke off for want of a slot
                assert reply.result(WAIT).status in (200, 202, 503)
    ended(site, target)
    for _ in range(3):
        assert viewers[0].given.acquire(timeout=WAIT)
    while viewers[0].given.acquire(blocking=False):
        pass
    assert viewers[0].free == 3


def test_an_answer_that_is_never_read_gives_its_slot_back(viewers: list[Watched]) -> None:
    play = Play()
    with BackgroundMiddleware(play, when=marks.always, stream_slots=1) as site:
        target = start(InProcess(site), "/")
        play.begins()
        for accept in ("*/*", "text/event-stream"):
            iterable: Any = site(environ("GET", target, accept=accept), lambda *head: None)
            assert viewers[0].free == 0
            iterable.close()
            iterable.close()
            assert viewers[0].free == 1
        play.answers()


def test_a_server_that_cannot_begin_the_response_loses_no_slot(viewers: list[Watched]) -> None:
    play = Play()

    def refuse(*head: Any) -> None:
        raise OSError("the client is gone")

    with BackgroundMiddleware(play, when=marks.always, stream_slots=1) as site:
        target = start(InProcess(site), "/")
        play.begins()
        for accept in ("*/*", "text/event-stream"):
            with pytest.raises(OSError, match="gone"):
                site(environ("GET", target, accept=accept), refuse)
            assert viewers[0].free == 1
        play.answers()


# The pace.


class Hand:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("every", [1.0, 5.0, 30.0])
@pytest.mark.parametrize("pollers", [1, 20, 50, 100, 200, 1000, 1400, 5000])
def test_the_pace_is_the_number_of_pollers_by_fifty_a_second(pollers: int, every: float) -> None:
    hand = Hand()
    viewers = Viewers(2, clock=hand)
    pace = 0.0
    for _ in range(int(60 * pollers / every)):  # a minute, all of them evenly spread
        hand.now += every / pollers
        pace = viewers.pace(every)
    # A third in ten seconds is lost in what one poller adds, where there are few.
    assert pace == pytest.approx(min(30.0, max(1.0, pollers / 50)), rel=0.02, abs=every / 10 / 50)


def test_a_crowd_that_keeps_to_the_pace_comes_fifty_times_a_second_at_most() -> None:
    hand = Hand()
    viewers = Viewers(2, clock=hand)
    due = [(hand.now + number / 500, 1.0) for number in range(500)]
    asked: list[float] = []
    heapq.heapify(due)
    while hand.now < 1120:
        at, every = heapq.heappop(due)
        hand.now = at
        asked.append(at)
        pace = viewers.pace(every)
        heapq.heappush(due, (at + pace, pace))
    last_minute = [at for at in asked if at > 1060]
    assert 45 <= len(last_minute) / 60 <= 55


@pytest.mark.parametrize("count", [100, 200, 400, 1000])
def test_who_says_that_it_is_new_is_counted_at_once(count: int) -> None:
    def polls_of_twenty_seconds(first: float | None) -> int:
        hand = Hand()
        viewers = Viewers(2, clock=hand)
        due: list[tuple[float, int, float | None]] = [(1000 + one / count, one, first) for one in range(count)]
        heapq.heapify(due)
        paces = []
        while due[0][0] < 1020:
            hand.now, one, every = heapq.heappop(due)
            paces.append(viewers.pace(every))
            heapq.heappush(due, (hand.now + paces[-1], one, paces[-1]))
        if first == 0:  # from when all are there: what is forgotten of the beginning is what their polls add
            assert all(0.5 <= pace / (count / 50) <= 1.3 for pace in paces[count:])
        return len(paces)

    assert polls_of_twenty_seconds(0.0) < 0.7 * polls_of_twenty_seconds(None)


def test_a_crowd_that_left_is_forgotten() -> None:
    hand = Hand()
    viewers = Viewers(2, clock=hand)
    for _ in range(1000):
        viewers.pace(10.0)
    assert viewers.pace(10.0) == pytest.approx(1001 * 10 / 10 / 50)
    hand.now += 60
    assert viewers.pace(None) == 1.0


def test_nobody_can_slow_the_others_down_at_will() -> None:
    viewers = Viewers(2, clock=Hand())
    assert viewers.pace(float("inf")) == 1.0
    assert viewers.pace(1e300) == 1.0
    for _ in range(1000):
        own = viewers.pace(0.0, "who is always new")
    assert own > 20
    assert viewers.pace(5.0, "another") == 1.0


def test_groups_of_pollers_get_what_they_need_or_as_much_as_any_other() -> None:
    hand = Hand()
    viewers = Viewers(2, clock=hand)
    paces: dict[int, float] = {}
    for _ in range(60):
        hand.now += 1.0
        for group, pollers in enumerate((5, 100, 300)):
            for _ in range(pollers):
                paces[group] = viewers.pace(1.0, group)
    assert paces[0] == 1.0
    assert paces[1] == pytest.approx(100 / 22.5, rel=0.1)
    assert paces[2] == pytest.approx(300 / 22.5, rel=0.1)


def test_as_many_places_as_there_are_fill_no_memory() -> None:
    viewers = Viewers(2, clock=Hand())
    paces = [viewers.pace(10.0, number) for number in range(1500)]
    assert len(viewers.pace._pollers) <= 1001
    assert paces[999] == pytest.approx(20.0)


def test_a_liar_slows_no_other_down_over_http(opens: Opener) -> None:
    play = Play()
    _, client = opens(play)
    first, second = start(client, "/"), start(client, "/")
    for _ in range(200):
        liar = client.request("GET", f"{first}&_offset=0&_every=0")
    assert float(liar["Job-Poll"]) > 2
    assert client.request("GET", f"{second}&_offset=0&_every=1")["Job-Poll"] == "1"


def test_who_is_refused_begins_to_poll_in_turn() -> None:
    hand = Hand()
    viewers = Viewers(2, clock=hand)
    at_once = [viewers.turn() for _ in range(200)]
    assert at_once == pytest.approx([number / 50 for number in range(200)])
    hand.now += 1
    assert viewers.turn() == pytest.approx(3.0), "behind those who came before"
    hand.now += 10
    assert viewers.turn() == 0, "nobody is before it any more"
    assert [viewers.turn() for _ in range(10_000)][-1] == 30.0


@pytest.mark.parametrize("query", ["&_offset=0", "&_offset=3", "&_view=status", "&_view=events"])
@pytest.mark.parametrize("crowd", [40, 100])
def test_waitress_keeps_the_connections_of_few_and_not_of_a_crowd(
    viewers: list[Watched], crowd: int, query: str
) -> None:
    play = Play()
    with BackgroundMiddleware(play, when=marks.always, stream_slots=0) as site, served(site) as client:
        target = start(client, "/")
        play.prints("abc")
        for number in range(crowd):
            viewers[0].pace(10.0, number)
            viewers[0].turn()
        connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=WAIT)
        connection.request("GET", target + query)
        with connection.getresponse() as response:
            body = response.read()
            assert body == {"&_offset=0": b"abc", "&_offset=3": b""}.get(query, body), "whole, whether it has a length"
            kept = crowd == 40
            assert (response.getheader("Content-Length") == str(len(body))) is kept
            assert response.will_close is not kept
        connection.close()
        play.answers()
        ended(site, target)


@pytest.mark.parametrize("every", ["x", "", "-1", "nan", "1s", "1,5"])
@pytest.mark.parametrize("query", ["&_offset=0", "&_view=status", "&_view=result"])
def test_a_bad_pace_is_400(opens: Opener, every: str, query: str) -> None:
    play = Play()
    _, client = opens(play)
    target = start(client, "/")
    play.begins()
    reply = client.request("GET", f"{target}{query}&_every={every}")
    assert (reply.status, reply.text) == (400, "_every must be a number of seconds.\n")
    assert client.request("GET", f"{target}{query}&_every=0.5").status in (200, 202)


def test_pollers_are_told_the_pace(opens: Opener, viewers: list[Watched]) -> None:
    play = Play()
    site, client = opens(play)
    target = start(client, "/")
    play.begins()
    assert client.request("GET", f"{target}&_offset=0")["Job-Poll"] == "1"
    for number in range(100):
        viewers[0].pace(10.0, number)
    paces = [client.request("GET", f"{target}{query}") for query in ("&_offset=0&_every=9", "&_view=status")]
    for reply in paces:
        assert 1.9 < float(reply["Job-Poll"]) < 2.1
        assert reply["Retry-After"] in ("2", "3")
    play.answers()
    ended(site, target)
    assert "Job-Poll" not in client.request("GET", f"{target}&_offset=0&_every=9")


def test_a_number_of_slots_below_none_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="stream_slots"):
        BackgroundMiddleware(answering(), stream_slots=-1)


# Who has left.


def leave(connection: socket.socket, how: str) -> None:
    if how == "reset":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.mark.parametrize("how", ["closed", "reset"])
@pytest.mark.parametrize("lookahead", [0, 1])
@ways
def test_the_slot_of_a_client_that_left_is_free_again(
    viewers: list[Watched], way: str, lookahead: int, how: str
) -> None:
    play = Play()
    with (
        BackgroundMiddleware(play, when=marks.always, stream_slots=1) as site,
        served(site, threads=1, channel_request_lookahead=lookahead) as client,
    ):
        target = start(client, "/")
        play.prints("abc")
        query, headers = WAYS[way]
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        request = f"GET {target}{query} HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode()
        connection = sent(client.port, request)
        assert viewers[0].taken.acquire(timeout=WAIT)
        if way in ("follow", "events"):
            assert connection.recv(1)  # the response has begun
        leave(connection, how)
        assert viewers[0].given.acquire(timeout=WAIT), "though the job prints nothing more"
        assert viewers[0].free == 1
        # And so is the only thread of the server.
        assert client.request("GET", f"{target}&_offset=0").text == "abc"
        play.answers()
        ended(site, target)


@pytest.mark.parametrize("lookahead", [0, 1])
def test_who_leaves_while_waiting_at_the_start_frees_its_slot(viewers: list[Watched], lookahead: int) -> None:
    play = Play()
    with (
        BackgroundMiddleware(play, when=marks.always, stream_slots=1) as site,
        served(site, threads=1, channel_request_lookahead=lookahead) as client,
    ):
        connection = sent(client.port, b"POST / HTTP/1.1\r\nHost: x\r\nPrefer: wait=30\r\nContent-Length: 0\r\n\r\n")
        assert viewers[0].taken.acquire(timeout=WAIT)
        connection.close()
        assert viewers[0].given.acquire(timeout=WAIT)
        play.answers()
        (job,) = site.registry.jobs()
        assert site.registry.wait(job.key, 2**62, WAIT).state == "finished", "its job goes on"


def test_nobody_is_turned_away_for_one_who_left() -> None:
    left = {"a": False, "b": False}
    viewers = Viewers(2)
    slots = {name: viewers.take_slot(lambda name=name: left[name]) for name in left}
    assert None not in slots.values()
    assert viewers.take_slot(lambda: False) is None
    left["a"] = True
    other = viewers.take_slot(lambda: False)
    assert other is not None, "though the server has not noticed yet"
    assert viewers.take_slot(lambda: False) is None
    viewers.give_back(slots["a"])  # when it does, there is nothing to give
    assert viewers.take_slot(lambda: False) is None
    viewers.give_back(other)
    viewers.give_back(other)
    assert viewers.take_slot(lambda: False) is not None
    assert viewers.take_slot(lambda: False) is None


def test_who_stays_is_not_taken_for_gone(viewers: list[Watched]) -> None:
    play = Play()
    with BackgroundMiddleware(play, when=marks.always) as site, served(site) as client:
        assert isinstance(client, OverHTTP)
        target = start(client, "/")
        looked = threading.Semaphore(0)
        follow = site.registry.follow

        def watched(*arguments: Any, **options: Any) -> Any:
            for piece in follow(*arguments, **options):
                if not piece.data:
                    looked.release()
                yield piece

        site.registry.follow = watched  # type: ignore[method-assign]
        play.prints("abc")
        with client.stream("GET", target) as (_, _, chunks):
            assert next(chunks) == b"abc"
            for _ in range(5):
                assert looked.acquire(timeout=WAIT)
            play.prints("def")
            assert next(chunks) == b"def"
        play.answers()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.mark.parametrize("key", ["gunicorn.socket", "werkzeug.socket"])
def test_a_server_that_gives_its_socket_away_is_looked_at(pair: tuple[socket.socket, socket.socket], key: str) -> None:
    ours, theirs = pair
    gone = disconnection_of({key: ours})
    assert not gone()
    theirs.send(b"more")  # a second request on the same connection
    assert not gone()
    ours.recv(100)
    theirs.close()
    assert gone()
    ours.close()
    assert gone()


def test_a_descriptor_of_any_number_is_looked_at(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 1200:
        pytest.skip("needs more descriptors")
    high = socket.socket(fileno=fcntl.fcntl(ours, fcntl.F_DUPFD, 1100))
    with high:
        assert high.fileno() >= 1024
        gone = disconnection_of({"gunicorn.socket": high})
        assert not gone(), "select() refuses this number"
        theirs.close()
        assert gone()


class Sealed(socket.socket):
    """As a TLS connection, which refuses to be looked into."""

    def recv(self, *arguments: Any) -> bytes:
        raise ValueError("non-zero flags not allowed in calls to recv()")


def test_a_client_that_cannot_be_looked_at_is_there(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    with Sealed(fileno=ours.detach()) as sealed:
        theirs.send(b"x")
        assert not disconnection_of({"gunicorn.socket": sealed})()


def test_a_system_without_poll_is_served_too(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = pair
    monkeypatch.delattr(select, "poll")
    gone = disconnection_of({"gunicorn.socket": ours})
    assert not gone()
    theirs.close()
    assert gone()


def test_a_server_that_says_nothing_is_believed() -> None:
    assert not disconnection_of({})()
    assert not disconnection_of({"gunicorn.socket": "no socket"})()
