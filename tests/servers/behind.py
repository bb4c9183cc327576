"""What the tests behind proxies share: a server that is asked through one, and the rows that it must pass."""

import contextlib
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.kit.processes import LONG, Server
from tests.kit.servers import open_directory
from tests.servers import conformance
from tests.servers.conformance import opened, running_site, waiting
from tests.servers.lineup import Candidate

__all__ = ["ROWS", "Behind", "behind", "is_up", "outlives_patience"]


P = TypeVar("P")


class Behind(Server):
    """A server that is asked through a proxy, under a prefix."""

    def __init__(self, server: Server, port: int, prefix: str, port_of_http_2: int = 0) -> None:
        self.__dict__.update(server.__dict__)
        self.port, self.prefix, self.port_of_http_2 = port, prefix, port_of_http_2

    def stream(self, method: str, target: str, body: bytes = b"", **headers: str) -> Any:
        return super().stream(method, self.prefix + target, body, **headers)


ROWS = (
    conformance.start,
    conformance.live,
    conformance.events,
    conformance.offsets,
    conformance.result,
    conformance.head,
    conformance.large,
    conformance.followers,
    conformance.refusal,
    conformance.cancel,
)


@contextlib.contextmanager
def behind(
    candidate: Candidate, proxy: Callable[[Path, int], contextlib.AbstractContextManager[P]]
) -> Iterator[tuple[Server, P]]:
    """Serve the kit's site, and put a proxy before it: *proxy* takes a directory and the port of the server, and gives
    its own ports."""
    if missing := candidate.missing():
        pytest.skip(missing)
    with (
        open_directory() as directory,
        open_directory() as of_proxy,
        running_site(candidate, directory) as server,
        proxy(of_proxy, server.port) as ports,
    ):
        yield server, ports


def is_up(port: int, process: "subprocess.Popen[Any]", log: Path) -> None:
    """Wait until a proxy takes connections."""
    until = time.monotonic() + LONG
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), LONG):
            return
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.02)  # between two looks, as there is nothing to wait for


def outlives_patience(hasty: Behind, gate: str, signs: int = 14) -> None:
    """A follower of a quiet job gets signs of life, one in 0.2 seconds, so that an impatient proxy waits on: for longer
    than its patience, if *signs* are so many."""
    target = waiting(hasty, gate)
    text = ""
    with hasty.stream("GET", target) as (status, _, chunks):
        assert status == 200
        for chunk in chunks:
            text += chunk.decode()
            if text.count("\r") >= signs:
                opened(hasty, gate)
    assert text.replace("\r", "") == "begun\nended\n"
