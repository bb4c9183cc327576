"""What is stored of a job cannot be read when somebody asks for it: the answer says so, by its status."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bgmiddleware import (
    BackgroundMiddleware,
    Channel,
    Job,
    JobExpired,
    JobNotFound,
    JobState,
    MemoryRegistry,
    RecordedResponse,
    RegistryError,
    marks,
)
from bgmiddleware._jobs import key_of, new_token
from bgmiddleware.registries.base import PAGE_BYTES, Piece
from bgmiddleware.registries.spool import SpoolRegistry
from bgmiddleware.testing.registries import RUNNER
from tests.kit.clients import InProcess, Reply, start
from tests.kit.readers import answering

TARGET = "/report"
HEADERS = (("Content-Type", "text/plain"), ("Set-Cookie", "session=1"))


class Troubled(MemoryRegistry):
    """Raises at each read what it is told to; None: nothing. The first *good* reads are spared."""

    trouble: Exception | None = None
    good = 0

    def read(self, key: str, channel: Channel, offset: int, limit: int = PAGE_BYTES) -> Piece:
        if self.trouble is not None and self.good <= 0:
            raise self.trouble
        self.good -= 1
        return super().read(key, channel, offset, limit)


@pytest.fixture
def registry() -> Iterator[Troubled]:
    with Troubled() as registry:
        yield registry


def client_of(registry: Any, **options: Any) -> InProcess:
    return InProcess(BackgroundMiddleware(answering(b"body"), when=marks.path(TARGET), registry=registry, **options))


def ended(registry: Any, *, body: bytes = b"body", output: bytes = b"output", ends: bool = True) -> str:
    """Return the target of a new job."""
    token = new_token()
    key = registry.add(Job(key_of(token), "GET /report")).key
    registry.claim(key, RUNNER)
    for channel, data in ((Channel.OUTPUT, output), (Channel.BODY, body)):
        registry.append(key, channel, 0, data, runner=RUNNER)
    if ends:
        registry.finish(key, RUNNER, JobState.FINISHED, response=RecordedResponse("200 OK", HEADERS))
    return f"{TARGET}?_t={token}"


def is_unavailable(reply: Reply) -> None:
    assert reply.status == 503
    assert int(reply["Retry-After"]) > 0
    assert b"cannot be read now" in reply.body


READS: dict[str, Callable[[InProcess, str], Reply]] = {
    "result": lambda client, target: client.request("GET", f"{target}&_view=result"),
    "a part of the result": lambda client, target: client.request("GET", f"{target}&_view=result", range="bytes=1-2"),
    "log": lambda client, target: client.request("GET", f"{target}&_view=log"),
    "a part of the log": lambda client, target: client.request("GET", f"{target}&_view=log", range="bytes=1-2"),
    "a page": lambda client, target: client.request("GET", f"{target}&_view=log&_offset=0"),
    "events": lambda client, target: client.request("GET", f"{target}&_view=events"),
}


@pytest.mark.parametrize("read", READS)
def test_a_job_whose_files_somebody_removed_is_unavailable(tmp_path: Path, read: str) -> None:
    with SpoolRegistry(tmp_path / "jobs") as registry:
        target = ended(registry)
        for file in (tmp_path / "jobs").glob("??/*"):
            file.unlink()
        is_unavailable(READS[read](client_of(registry), target))


@pytest.mark.parametrize("read", READS)
def test_a_registry_that_goes_away_between_the_look_and_the_read_is_unavailable(registry: Troubled, read: str) -> None:
    target = ended(registry)
    registry.trouble = RegistryError("away")
    is_unavailable(READS[read](client_of(registry), target))
    registry.trouble = None
    assert READS[read](client_of(registry), target).status in (200, 206)


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize(("trouble", "status"), [(JobExpired("0" * 32), 410), (JobNotFound("0" * 32), 404)])
def test_a_job_that_is_forgotten_between_the_look_and_the_read_is_gone(
    registry: Troubled, read: str, trouble: Exception, status: int
) -> None:
    target = ended(registry)
    registry.trouble = trouble
    assert READS[read](client_of(registry), target).status == status


@pytest.mark.parametrize("read", ["log", "a part of the log", "a page", "events"])
def test_the_output_of_a_job_that_runs_is_unavailable_and_gives_its_slot_back(registry: Troubled, read: str) -> None:
    target = ended(registry, ends=False)
    client = client_of(registry, stream_slots=1)
    registry.trouble = RegistryError("away")
    for _ in range(2):
        is_unavailable(READS[read](client, target))
    registry.trouble = None
    with client.stream("GET", f"{target}&_view=events") as (status, _, _):
        assert status == 200


@pytest.mark.parametrize("slots", [0, 1])
def test_output_without_its_middle_is_unavailable_too(slots: int) -> None:
    with Troubled(max_output=4) as registry:
        target, running = ended(registry), ended(registry, ends=False)
        registry.trouble = RegistryError("away")
        client = client_of(registry, stream_slots=slots)
        for each in (target, running):
            is_unavailable(READS["log"](client, each))


def test_cookies_are_for_who_gets_the_result_and_not_for_who_is_told_that_it_is_unavailable(
    registry: Troubled,
) -> None:
    target = ended(registry)
    client = client_of(registry)
    registry.trouble = RegistryError("away")
    is_unavailable(READS["result"](client, target))
    registry.trouble = None
    reply = READS["result"](client, target)
    assert (reply["Set-Cookie"], reply.body) == ("session=1", b"body")
    assert "Set-Cookie" not in READS["result"](client, target)


@pytest.mark.parametrize("trouble", [RegistryError("away"), JobExpired("0" * 32)])
def test_what_cannot_be_read_later_breaks_the_connection(registry: Troubled, trouble: Exception) -> None:
    target = ended(registry, body=b"x" * (2 * PAGE_BYTES))
    client = client_of(registry)
    registry.trouble, registry.good = trouble, 1
    with client.stream("GET", f"{target}&_view=result") as (status, _, chunks):
        assert status == 200
        assert next(chunks) == b"x" * PAGE_BYTES
        with pytest.raises(type(trouble)):
            next(chunks)


@pytest.mark.parametrize("size", [10, 2 * PAGE_BYTES])
@pytest.mark.parametrize("how", [{"promote_after": 30.0}, {}])
def test_a_result_that_came_in_time_and_cannot_be_read_is_unavailable(
    registry: Troubled, size: int, how: dict[str, float]
) -> None:
    app = BackgroundMiddleware(answering(b"x" * size), when=marks.path(TARGET), registry=registry, **how)
    registry.trouble = RegistryError("away")
    is_unavailable(InProcess(app).request("GET", TARGET, prefer="wait=30" if not how else ""))


def test_what_has_no_bytes_needs_none(registry: Troubled) -> None:
    app = BackgroundMiddleware(answering(b"", status="204 No Content"), when=marks.path(TARGET), registry=registry)
    registry.trouble = RegistryError("away")
    client = InProcess(app)
    target = start(client, TARGET)
    assert client.request("GET", f"{target}&_view=result&_wait=30").status == 204
