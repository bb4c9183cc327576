"""A real RabbitMQ server for tests: that of the system, as a process of the tests, with its data in a directory of its
own and all its ports on the loopback. Without it the tests skip, or fail where it was promised (``CI=true``)."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import PROMISED
from tests.kit.ports import free_ports

SECONDS = 120.0
"""How long it may take to start: some seconds on an idle machine."""

_PROGRAM = "/usr/lib/rabbitmq/bin/rabbitmq-server"  # of Debian; the one in the path wants to be another user

# Runs a command; when our end of the pipe is closed, which it is too when the tests are killed, all of its group end.
_GUARDED = '"$@" </dev/null & read -r _; kill -KILL 0'


def needs_rabbitmq_server() -> str:
    """Return the path of the server; without one skip the calling test, or fail where it was promised."""
    if os.path.exists(_PROGRAM) and shutil.which("epmd"):
        return _PROGRAM
    message = "needs a rabbitmq-server: apt-get install rabbitmq-server"
    if PROMISED:
        pytest.fail(message)
    pytest.skip(message)


class RabbitMQServer:
    """A server, and the port mapper that it would else leave behind."""

    def __init__(self) -> None:
        self._program = needs_rabbitmq_server()
        self._directory = tempfile.mkdtemp(prefix="bg-rabbitmq-")
        self._processes: list[subprocess.Popen[bytes]] = []
        self.port, self._dist_port, self._mapper_port = free_ports(3)

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    def start(self) -> "RabbitMQServer":
        directory = Path(self._directory)
        (directory / "plugins").write_text("[].")
        environ = {
            **os.environ,
            "HOME": self._directory,
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self._mapper_port),
            "RABBITMQ_NODENAME": "bgmiddleware@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_MNESIA_BASE": str(directory / "data"),
            "RABBITMQ_LOG_BASE": str(directory / "log"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_CONFIG_FILE": str(directory / "none"),
            "RABBITMQ_CONF_ENV_FILE": str(directory / "none"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "plugins"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        }
        self._run(["epmd", "-port", str(self._mapper_port)], environ)
        server = self._run([self._program], environ)
        deadline = time.monotonic() + SECONDS
        while not self._answers():
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((directory / "said").read_text(errors="replace"))
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(0.1)
        return self

    def _run(self, command: list[str], environ: dict[str, str]) -> subprocess.Popen[bytes]:
        with open(Path(self._directory, "said"), "ab") as said:
            process = subprocess.Popen(
                ["sh", "-c", _GUARDED, "sh", *command],
                cwd=self._directory,
                env=environ,
                stdin=subprocess.PIPE,
                stdout=said,
                stderr=said,
                start_new_session=True,  # it begins others, which end with it
            )
        self._processes.append(process)
        return process

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as connection:
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            return bool(connection.recv(1))
        return False

    def close(self) -> None:
        """End it and remove its directory. Idempotent."""
        while self._processes:
            process = self._processes.pop()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate(timeout=SECONDS)
        shutil.rmtree(self._directory, ignore_errors=True)


@pytest.fixture(scope="module")
def rabbitmq_server() -> Iterator[RabbitMQServer]:
    server = RabbitMQServer()
    try:
        yield server.start()
    finally:
        server.close()
