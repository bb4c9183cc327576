"""Whatever a client sends, nothing of ours answers 500, hangs, or keeps memory."""

import contextlib
import random
import re
import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.kit.clients import OverHTTP, served
from tests.reliability.fuzz import fuzz, hostile_bytes, open_sites, rss

UNFINISHED = 1.0  # seconds after which a server still waits for the rest of a request
MEMORY = 64 * 1024 * 1024  # more than jobs of these sites may keep


def test_requests_in_process() -> None:
    with open_sites() as sites:
        assert fuzz(sites, range(300)) == []
        assert {200, 303, 400, 404} <= sites.statuses.keys()


@pytest.mark.everything
def test_many_requests_in_process_leave_no_memory_behind() -> None:
    with open_sites() as sites:
        assert fuzz(sites, range(1_000, 3_000)) == []
        before = rss()
        assert fuzz(sites, range(3_000, 10_000)) == []
        assert rss() - before < MEMORY


@pytest.mark.everything
def test_requests_by_a_socket() -> None:
    with open_sites() as sites, served(sites.apps[0], threads=8) as client, ThreadPoolExecutor(32) as pool:

        def send(seed: int) -> list[int]:
            return statuses_of(client, hostile_bytes(random.Random(seed), sites.tokens(sites.apps[0])))

        seen = Counter(status for statuses in pool.map(send, range(1_000)) for status in statuses)
        assert not {status for status in seen if status >= 500} - {501, 503, 505}, seen
        assert {200, 303, 400} <= seen.keys()
        # And all its threads are free again.
        for reply in pool.map(lambda _: client.request("GET", "/plain"), range(32)):
            assert reply.status == 200


def statuses_of(client: OverHTTP, data: bytes) -> list[int]:
    """Send bytes to a server; return the statuses of its answers."""
    answer = b""
    with socket.create_connection(("127.0.0.1", client.port)) as connection, contextlib.suppress(OSError):
        connection.sendall(data)
        connection.settimeout(UNFINISHED)
        while received := connection.recv(65536):
            answer += received
    return [int(status) for status in re.findall(rb"(?:\A|\n)HTTP/1\.[01] (\d{3}) ", answer)]
