"""Servers as real processes: started, talked to, killed."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from tests.kit.clients import OverHTTP, Reply
from tests.kit.documents import ROOT
from tests.kit.looking import eventually

TRIES = 400
LONG = 120.0
_OWN = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}


class Server(OverHTTP):
    """A server process on this machine, with what it said so far in ``log``."""

    def __init__(self, command: Sequence[str], address: str, cwd: Path, **environ: str) -> None:
        super().__init__(0)
        self.directory = cwd
        self.log = ""
        self._command = command
        self._changed = threading.Condition()  # guards the log
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**os.environ, **_OWN, "HOME": str(cwd), "SITE_DIRECTORY": str(cwd), **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, name="reader of a server's log")
        self._reader.start()
        try:
            self.port = int(self.said(address)[1])
        except BaseException:
            self.kill()
            raise

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.log += line
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def said(self, pattern: str, times: int = 1) -> "re.Match[str]":
        """Wait until the log has this so many times; return the last match."""

        def found() -> list["re.Match[str]"]:
            return list(re.finditer(pattern, self.log))

        with self._changed:
            self._changed.wait_for(lambda: len(found()) >= times or self.process.poll() is not None, LONG)
            assert len(found()) >= times, self.log
            return found()[times - 1]

    def until(self, is_so: Callable[[Reply], Any], method: str, target: str, **headers: str) -> Reply:
        """Repeat a request until the answer is as wanted; return that answer."""
        deadline = time.monotonic() + LONG
        while not is_so(reply := self.request(method, target, **headers)):
            assert time.monotonic() < deadline, (reply, self.log)
        return reply

    def started(self, path: str, **headers: str) -> str:
        """Start a job; return its target."""
        reply = self.request("POST", path, **headers)
        assert reply.status in (202, 303), (reply, self.log)
        return path.partition("?")[0] + reply["Location"]

    def ended(self, target: str, **headers: str) -> Any:
        """Wait until the job of *target* has ended; return its state document."""

        def has_ended(reply: Reply) -> bool:
            return reply.status == 200 and reply.json["state"] not in ("pending", "running")

        return self.until(has_ended, "GET", f"{target}&_view=status&_wait=1", **headers).json

    def begun(self, target: str, text: str = "begun\n", **headers: str) -> None:
        """Wait until the job has printed *text*."""
        self.until(lambda reply: text in reply.text, "GET", f"{target}&_view=log&_offset=0&_wait=1", **headers)

    def output(self, target: str) -> bytes:
        """Return what the job of *target* printed, and nothing else, page by page."""
        kept = b""
        while True:
            reply = self.until(lambda reply: reply.status != 503, "GET", f"{target}&_view=log&_offset={len(kept)}")
            assert (reply.status, int(reply["Job-Offset"])) == (200, len(kept)), reply
            if not reply.body:
                return kept
            kept += reply.body

    def send(self, number: signal.Signals) -> None:
        if any(Path(part).name == "uwsgi" for part in self._command):
            _rest(self.process.pid)
        self.process.send_signal(number)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Stop it as a site does; return its exit status."""
        self.send(number)
        return self.wait()

    def wait(self) -> int:
        try:
            return self.process.wait(LONG)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGABRT)  # each process writes down where its threads are
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
            self.kill()
            raise AssertionError(f"it did not end:\n{self.log}") from None
        finally:
            self.kill()

    def kill(self) -> None:
        """Kill it with all its workers. Does nothing the second time."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()


def _rest(master: int) -> None:
    """Wait until the main threads of uWSGI's workers sleep.

    A signal makes uWSGI call ``exit()`` in its handler. Where the thread that it interrupts holds the mutex of the GIL,
    as it may for some microseconds behind the last request, no Python code runs any more: the worker hangs until
    uWSGI kills it. No event tells when a thread sleeps: it did where two looks are the same.
    """
    children = Path(f"/proc/{master}/task/{master}/children")
    looks: list[str] = []

    def slept() -> bool:
        nonlocal looks
        before, looks = looks, [_look(pid) for pid in children.read_text().split()]
        return looks == before and all("State:\tS" in look for look in looks)

    eventually(slept)


def _look(pid: str) -> str:
    """Return the state of the main thread of a process, and how often it slept; empty: it has ended."""
    try:
        return "".join(
            re.findall(r"^(?:State|\w*voluntary_ctxt_switches):.*\n", Path(f"/proc/{pid}/status").read_text(), re.M)
        )
    except OSError:
        return ""


def gunicorn(directory: Path, *options: str, workers: int = 4, **environ: str) -> Server:
    """Serve ``tests.kit.served_site`` on gunicorn; return when all workers are there."""
    command = [sys.executable, "-m", "gunicorn", "-b", "127.0.0.1:0", "-w", str(workers), *options]
    server = Server(
        [*command, "tests.kit.served_site:app"], r"Listening at: http://127\.0\.0\.1:(\d+)", directory, **environ
    )
    try:
        # Not before: a worker that was just forked does not hear of SIGTERM.
        server.said("the app is there", 1 if "--preload" in options else workers)
        server.said("Booting worker with pid", workers)
    except BaseException:
        server.kill()
        raise
    return server


@contextlib.contextmanager
def running(server: Server) -> Iterator[Server]:
    """Kill *server* at the end of the block, if it still runs."""
    try:
        yield server
    finally:
        server.kill()


@contextlib.contextmanager
def opened_when_up(command: Sequence[str], cwd: Path, url: str, **environ: str) -> Iterator[Any]:
    """Start a server that does not say when it is there, give the first response to *url*, and end the server."""
    server = subprocess.Popen(command, cwd=cwd, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        with _when_up(server, url) as response:
            yield response
    finally:
        server.terminate()
        server.communicate(timeout=LONG)


def _when_up(server: subprocess.Popen[bytes], url: str) -> Any:
    deadline = time.monotonic() + LONG
    while True:
        try:
            return urlopen(url)
        except URLError:
            assert server.poll() is None, server.communicate()[1].decode()
            assert time.monotonic() < deadline
            time.sleep(0.05)  # between two looks, as there is nothing to wait for
