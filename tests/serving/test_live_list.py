"""The list of all jobs, left open: by events while a slot is free, else by polls that are the same for all."""

import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from bgmiddleware import Job, MemoryRegistry, ThreadExecutor
from bgmiddleware._jobs import key_of
from bgmiddleware._serving.recent import Recent
from bgmiddleware.testing import Clock
from tests.kit.clients import ended, start
from tests.kit.readers import Play, answering
from tests.kit.stores import Stores

HTML = {"accept": "text/html"}
EVENTS = {"accept": "text/event-stream"}
OPTIONS: dict[str, Any] = {
    "dashboard": "/_jobs",
    "authorize": lambda environ: set(environ.get("HTTP_X_RIGHTS", "list,output,cancel").split(",")),
}


@pytest.fixture
def opens() -> Iterator[Stores]:
    with contextlib.ExitStack() as stack:
        yield Stores("memory:", stack)


def news(chunks: Iterator[bytes]) -> Iterator[str]:
    """Yield the HTML of each event."""
    text = ""
    for chunk in chunks:
        text += chunk.decode()
        while "\n\n" in text:
            block, _, text = text.partition("\n\n")
            (data,) = re.findall(r"^data: (.*)$", block, re.MULTILINE)
            yield json.loads(data)["html"]


def test_who_listens_is_told_of_each_change(opens: Stores) -> None:
    play = Play()
    site, client = opens(play, **OPTIONS)
    with client.stream("GET", "/_jobs?_view=events") as (status, headers, chunks):
        assert status == 200
        assert dict(headers)["Content-Type"] == "text/event-stream; charset=utf-8"
        heard = news(chunks)
        first = next(heard)
        assert first.startswith('<div id="live">')
        assert "There are no jobs." in first
        target = start(client, "/slow")
        play.begins()
        while "▶ running" not in (told := next(heard)):
            pass
        assert "POST /slow" in told
        play.answers()
        ended(site, target)
        while "✓ finished" not in next(heard):
            pass


def test_events_are_of_what_is_asked_for(opens: Stores) -> None:
    site, client = opens(answering(), owner=lambda environ: environ.get("HTTP_X_USER"), **OPTIONS)
    for user in ("ada", "bob"):
        ended(site, start(client, f"/{user}", x_user=user))
    with client.stream("GET", "/_jobs?owner=ada", **EVENTS) as (_, _, chunks):
        told = next(news(chunks))
    assert "POST /ada" in told
    assert "/bob" not in told
    assert client.request("HEAD", "/_jobs", **EVENTS).body == b""
    assert client.request("GET", "/_jobs?sort=x", **EVENTS).status == 400
    assert client.request("GET", "/_jobs", x_rights="output", **EVENTS).status == 403


def test_an_open_list_leaves_a_slot_to_the_readers_of_jobs(opens: Stores) -> None:
    play = Play()
    site, client = opens(play, stream_slots=2, **OPTIONS)
    target = start(client, "/slow")
    play.begins()
    with client.stream("GET", "/_jobs", **EVENTS) as (status, _, chunks):
        next(chunks)
        assert status == 200
        refused = client.request("GET", "/_jobs", **EVENTS)
        assert refused.status == 503
        assert float(refused["Job-Poll"]) >= 0.0
        with client.stream("GET", target, **EVENTS) as (status, _, chunks):
            next(chunks)
            assert status == 200
    play.answers()
    ended(site, target)


@pytest.mark.parametrize("slots", [0, 1])
def test_where_no_slot_is_to_spare_a_list_is_polled(opens: Stores, slots: int) -> None:
    site, client = opens(answering(), stream_slots=slots, **OPTIONS)
    ended(site, start(client, "/x"))
    assert client.request("GET", "/_jobs", **EVENTS).status == 503
    reply = client.request("GET", "/_jobs?_view=live", **HTML)
    assert (reply.status, reply["Vary"]) == (200, "Accept, Accept-Language")
    assert float(reply["Job-Poll"]) >= 5.0
    assert reply["Content-Security-Policy"] == "default-src 'none'"
    assert reply.text.startswith('<div id="live">')
    assert "POST /x" in reply.text
    assert client.request("GET", "/_jobs?_view=live&_every=x", **HTML).status == 400


def test_many_who_poll_ask_less_often(opens: Stores) -> None:
    _, client = opens(answering(), **OPTIONS)
    paces = [float(client.request("GET", "/_jobs?_view=live&_every=30", **HTML)["Job-Poll"]) for _ in range(100)]
    assert paces[0] == 5.0
    assert paces[-1] > 6.0


def test_what_others_are_shown_is_shown_to_nobody_with_other_rights(opens: Stores) -> None:
    site, client = opens(answering(), **OPTIONS)
    site.registry.add(Job(key_of("one"), "one"))
    for _ in range(2):
        whole = client.request("GET", "/_jobs?_view=live", x_rights="list,output,cancel").text
        bare = client.request("GET", "/_jobs?_view=live", x_rights="list").text
        german = client.request("GET", "/_jobs?_view=live", x_rights="list", accept_language="de").text
        assert ("Cancel" in whole, "Cancel" in bare) == (True, False)
        assert ("<a href=" in whole.partition("<tbody>")[2], "wartet" in german) == (True, True)
        assert "<a href=" not in bare.partition("<tbody>")[2].partition("</tbody>")[0]


def test_what_many_look_at_is_read_once_a_second(opens: Stores) -> None:
    clock, asked = Clock(), []

    class Counting(MemoryRegistry):
        def jobs(self, *given: Any, **named: Any) -> list[Job]:
            asked.append(given)
            return super().jobs(*given, **named)

    site, client = opens(answering(), registry=Counting(), **OPTIONS)
    object.__setattr__(site._site, "lists", Recent(clock))
    for seconds in (0.0, 0.9, 0.2, 0.7):
        clock.advance(seconds)
        for _ in range(3):
            client.request("GET", "/_jobs?_view=live")
    assert len(asked) == 2


def test_what_is_made_is_made_anew_when_it_is_old_and_forgotten_where_there_is_more() -> None:
    clock = Clock()
    recent, made = Recent[int](clock), iter(range(1000))

    def make() -> int:
        return next(made)

    assert [recent.of("a", 1.0, make) for _ in range(3)] == [0, 0, 0]
    clock.advance(1.0)
    # Who asks while it is made gets the one before it.
    assert recent.of("a", 1.0, lambda: 100 + recent.of("a", 1.0, make)) == 100
    clock.advance(10.0)
    assert recent.of("a", 1.0, lambda: 200 + recent.of("a", 1.0, make)) == 201, "but none that is long over"
    for number in range(50):
        recent.of(number, 1.0, make)
    assert recent.of("a", 1.0, lambda: -1) == -1
    with pytest.raises(ZeroDivisionError):
        recent.of("b", 1.0, lambda: 1 // 0)
    assert recent.of("b", 1.0, lambda: 5) == 5


def test_what_cannot_be_made_any_more_is_shown_for_ten_times_as_long_and_no_longer() -> None:
    clock = Clock()
    recent = Recent[int](clock)
    assert recent.of("a", 1.0, lambda: 0) == 0
    for _ in range(9):
        clock.advance(1.0)
        with pytest.raises(ZeroDivisionError):
            recent.of("a", 1.0, lambda: 1 // 0)
        assert recent.of("a", 1.0, lambda: 1 // 0) == 0, "what was there before"
    clock.advance(1.0)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            recent.of("a", 1.0, lambda: 1 // 0)


def test_who_left_gives_the_slot_back(opens: Stores) -> None:
    _, client = opens(answering(), stream_slots=2, executor=ThreadExecutor(drain=0.0), **OPTIONS)
    for _ in range(3):
        with client.stream("GET", "/_jobs", **EVENTS) as (status, _, chunks):
            assert status == 200
            next(chunks)
