"""Whoever reads a job's output comes to its end, to the end of a time, or to an error: whatever bytes there are,
wherever they were cut or dropped, and from wherever the reader begins."""

import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from bgmiddleware import BackgroundMiddleware, Channel, Job, JobState, Registry, RegistryError, marks
from bgmiddleware._jobs import key_of, new_token
from bgmiddleware._serving import events
from bgmiddleware.registries import open_registry
from bgmiddleware.registries.base import Piece
from bgmiddleware.testing.registries import RUNNER, begun, done
from tests.kit.clients import InProcess
from tests.kit.readers import answering, events_of

WORDS = [
    *(text.encode() for text in ("a", "line\n", "\r\n", "é", "€", "😀", "\0")),
    b"\x80",
    b"\xbf\xbf\xbf\xbf",
    b"\xff",
]
MANY = 3000  # steps that no reader of these outputs needs
EXAMPLES = 40  # for each seed; one seed will do in a short run
SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.everything) for seed in (1, 2))]


class Example:
    """A job that printed something, and what is kept of it."""

    def __init__(self, registry: Registry, chance: random.Random, most: int, *, ends: bool) -> None:
        self.registry = registry
        self.token = new_token()
        self.key = registry.add(Job(key_of(self.token), "GET /")).key
        registry.claim(self.key, RUNNER)
        data = b"".join(chance.choices(WORDS, k=chance.randrange(30)))
        self.printed = data[: chance.randrange(len(data) + 1)] if chance.random() < 0.5 else data
        at = 0
        while at < len(self.printed):
            size = chance.randrange(1, 20)
            at = registry.append(self.key, Channel.OUTPUT, at, self.printed[at : at + size], runner=RUNNER)
        if ends:
            registry.finish(self.key, RUNNER, JobState.FINISHED)
        self.dropped = registry.get(self.key).output_dropped
        begin, end = self.dropped or (0, 0)
        gap = f"\n[… {end - begin} bytes of output were dropped here: {begin} to {end} …]\n".encode() if end else b""
        self.kept = self.printed[:begin] + self.printed[end:]
        self.shown = self.printed[:begin] + gap + self.printed[end:]
        assert len(self.kept) == min(len(self.printed), most)


@pytest.fixture(params=["memory", pytest.param("spool", marks=pytest.mark.everything)])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def examples(kind: str, tmp_path: Path, seed: int, *, ends: bool) -> Iterator[tuple[Example, random.Random]]:
    chance = random.Random(seed)
    for number in range(EXAMPLES):
        most = chance.randrange(1, 40)
        url = "memory:" if kind == "memory" else f"spool:{tmp_path / str(number % 4)}"
        with open_registry(url, max_output=most) as registry:
            yield Example(registry, chance, most, ends=ends), chance


def walked(registry: Registry, key: str, offset: int, chance: random.Random) -> tuple[int, bytes]:
    """Read pages until one of them leads no further; return where that is, and all that was in them."""
    text = b""
    for _ in range(MANY):
        piece = registry.page(key, offset, limit=chance.randrange(1, 9)).piece
        assert piece.end >= offset
        if piece.end == offset:
            return offset, text
        text += piece.data
        offset = piece.end
    raise AssertionError("these pages have no end")


@pytest.mark.parametrize("seed", SEEDS)
def test_who_follows_or_turns_pages_of_a_job_that_ended_comes_to_its_end(kind: str, tmp_path: Path, seed: int) -> None:
    for example, chance in examples(kind, tmp_path, seed, ends=True):
        registry, end = example.registry, len(example.printed)
        pieces = list(itertools.islice(registry.follow(example.key), MANY))
        assert b"".join(piece.data for piece in pieces) == example.kept
        assert all(before.end <= after.offset for before, after in itertools.pairwise(pieces))
        for offset in (0, chance.randrange(end + 1), end):
            assert done(begun(walked, registry, example.key, offset, chance))[0] == end
        assert registry.page(example.key, end + 5).piece == (end, b"")


@pytest.mark.parametrize("seed", SEEDS)
def test_who_turns_pages_of_a_job_that_runs_stops_before_half_a_character_at_most(
    kind: str, tmp_path: Path, seed: int
) -> None:
    for example, chance in examples(kind, tmp_path, seed, ends=False):
        end = len(example.printed)
        offset, _ = done(begun(walked, example.registry, example.key, 0, chance))
        assert end - 3 <= offset <= end
        assert not example.printed[offset:].decode("utf-8", "ignore")


@pytest.mark.parametrize("seed", SEEDS)
def test_every_view_of_a_job_that_ended_ends_with_all_that_is_kept(kind: str, tmp_path: Path, seed: int) -> None:
    for example, chance in examples(kind, tmp_path, seed, ends=True):
        client = InProcess(BackgroundMiddleware(answering(), when=marks.always, registry=example.registry))
        target = f"/?_t={example.token}"
        end = len(example.printed)
        stream = done(begun(client.request, "GET", f"{target}&_view=events"))
        *_, last = events_of(stream.body)
        assert (last.kind, last.id) == ("done", f"{end};done")
        whole = client.request("GET", f"{target}&_view=log")
        assert (whole.body, whole["Content-Length"]) == (example.shown, str(len(example.shown)))
        for _ in range(4):
            first, size = chance.randrange(-3, end + 5), chance.randrange(-2, 60)
            page = client.request("GET", f"{target}&_view=log&_offset={first}")
            assert page.status == 200
            assert int(page["Job-Next-Offset"]) <= end
            part = client.request("GET", f"{target}&_view=log", range=f"bytes={first}-{first + size}")
            assert part.status in (200, 206, 416)
            resumed = client.request("GET", f"{target}&_view=events&_offset={max(0, first)}")
            assert events_of(resumed.body)[-1].kind == "done"


@pytest.mark.parametrize("seed", SEEDS[:2])
def test_a_stream_of_a_job_that_runs_ends_when_its_time_is_over(
    kind: str, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "_LONGEST", 0.0)
    for example, chance in examples(kind, tmp_path, seed, ends=False):
        client = InProcess(BackgroundMiddleware(answering(), when=marks.always, registry=example.registry))
        offset = chance.randrange(len(example.printed) + 5)
        stream = client.request("GET", f"/?_t={example.token}&_view=events&_offset={offset}")
        assert "done" not in [event.kind for event in events_of(stream.body)]


# A registry that gives nothing where something is: nobody may take that for the end, nor ask again and again at once.


def hollow_out(monkeypatch: pytest.MonkeyPatch, registry: Registry) -> None:
    monkeypatch.setattr(registry, "read", lambda key, channel, offset, limit=0: Piece(offset, b""))


@pytest.mark.parametrize("ends", [True, False])
def test_bytes_that_are_not_there_are_an_error_for_who_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    with open_registry("memory:") as registry:
        example = Example(registry, random.Random(1), 1000, ends=ends)
        assert example.printed
        hollow_out(monkeypatch, registry)
        with pytest.raises(RegistryError, match="are not there"):
            next(registry.follow(example.key))


def test_bytes_that_are_not_there_are_no_end_of_a_log_nor_of_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_registry("memory:") as registry:
        example = Example(registry, random.Random(1), 1000, ends=True)
        hollow_out(monkeypatch, registry)
        client = InProcess(BackgroundMiddleware(answering(), when=marks.always, registry=registry))
        assert client.request("GET", f"/?_t={example.token}&_view=log").status == 503
        with pytest.raises(OSError, match="not there any more"):  # which breaks the connection
            client.request("GET", f"/?_t={example.token}&_view=events")
