"""What clients cost that ask for a large result and do not read it, and how fast a large result is sent.

``python -m benchmarks.slow_readers``. Served on waitress with eight threads. Budgets: with eight clients that read
nothing an unrelated view is answered within 20 ms (p99); a result of 50 MB is sent at 0.9 of the speed of the server's
own file path, which is the floor here.
"""

import argparse
import contextlib
import http.client
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from waitress.server import create_server

from bgmiddleware import BackgroundMiddleware, MemoryRegistry, Registry, marks
from bgmiddleware.registries.spool import SpoolRegistry

from ._measure import header, verdict

__all__ = ["main"]

_MOST_PING_MS = 20.0
_LEAST_SPEED = 0.9
_MIB = 1024 * 1024


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.slow_readers", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="downloads of each kind (default: %(default)s)")
    parser.add_argument("--megabytes", type=int, default=50, help="size of the result (default: %(default)s)")
    parser.add_argument("--readers", type=int, default=8, help="clients that do not read (default: %(default)s)")
    parser.add_argument("--pings", type=int, default=200, help="requests meanwhile (default: %(default)s)")
    options = parser.parse_args(arguments)

    print(header("Slow readers"))
    size = options.megabytes * _MIB
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        path = f"{directory}/file"
        with open(path, "wb") as file:
            file.truncate(size)
        ports: dict[str, tuple[int, str]] = {}
        for name, registry in _registries(directory, size):
            site = stack.enter_context(BackgroundMiddleware(_app(path, size), when=marks.path("/x"), registry=registry))
            port = stack.enter_context(_served(site))
            ports[name] = port, _ended(port)
            ports["the server's own file path"] = port, "/file"
        speeds = _speeds(ports, size, options.rounds)
        floor = speeds["the server's own file path"]
        for name, (port, target) in ports.items():
            pings = _pings(port, target, options.readers, options.pings)
            p50, p99 = 1000 * statistics.median(pings), 1000 * sorted(pings)[int(len(pings) * 0.99)]
            ratio = speeds[name] / floor
            # The file path itself is the floor, and no row.
            row = "" if target == "/file" else f"a result of {options.megabytes} MB, {name}, × file path"
            print(
                f"{name:28} ping with {options.readers} of them: p50 {p50:6.2f} ms, p99 {p99:6.2f} ms"
                f" (budget ≤ {_MOST_PING_MS:.0f}: {verdict(p99, _MOST_PING_MS)});"
                f" speed {ratio:4.2f} (budget ≥ {_LEAST_SPEED}: {verdict(-ratio, -_LEAST_SPEED, row)})"
            )
    return 0


def _registries(directory: str, size: int) -> Iterator[tuple[str, Registry]]:
    yield "memory", MemoryRegistry(max_result=2 * size)
    yield "spool", SpoolRegistry(f"{directory}/jobs", max_result=2 * size)


def _app(path: str, size: int) -> Any:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        asked = environ["PATH_INFO"]
        length = size if asked in ("/x", "/file") else 4
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(length))])
        if asked == "/file":
            return environ["wsgi.file_wrapper"](open(path, "rb"))  # the server closes it
        return (bytes(_MIB) for _ in range(size // _MIB)) if asked == "/x" else [b"pong"]

    return app


@contextlib.contextmanager
def _served(app: Any) -> Iterator[int]:
    server: Any = create_server(app, host="127.0.0.1", port=0, threads=8, channel_request_lookahead=1)
    threading.Thread(target=server.run, name="waitress", daemon=True).start()
    try:
        yield server.effective_port
    finally:
        server.close()


def _get(port: int, target: str) -> tuple[http.client.HTTPResponse, int]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", target)
    response = connection.getresponse()
    read = 0
    while data := response.read(_MIB):
        read += len(data)
    connection.close()
    return response, read


def _ended(port: int) -> str:
    """Run the job; return the target of its result."""
    location = _get(port, "/x")[0].getheader("Location")
    target = f"/x{location}&_view=result"
    while _get(port, f"{target}&_wait=30")[0].status == 202:
        pass
    return target


def _speeds(ports: dict[str, tuple[int, str]], size: int, rounds: int) -> dict[str, float]:
    """Return the best bytes a second of each, in interleaved rounds."""
    best = dict.fromkeys(ports, 0.0)
    for _ in range(rounds):
        for name, (port, target) in ports.items():
            begun = time.perf_counter()
            _, read = _get(port, target)
            if read != size:
                raise AssertionError(f"{name}: {read} bytes of {size}")
            best[name] = max(best[name], size / (time.perf_counter() - begun))
    return best


def _pings(port: int, target: str, readers: int, count: int) -> list[float]:
    """Return the seconds of each of *count* requests while *readers* clients do not read what they asked for."""
    with contextlib.ExitStack() as stack:
        for _ in range(readers):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60))
            connection.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            connection.recv(1)
        seconds = []
        for _ in range(count):
            begun = time.perf_counter()
            _get(port, "/ping")
            seconds.append(time.perf_counter() - begun)
        return seconds


if __name__ == "__main__":
    sys.exit(main())
