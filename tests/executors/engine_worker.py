"""Real workers of engines, as processes: ``python -m bgmiddleware work``."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from tests.kit.documents import ROOT

SECONDS = 120.0
"""How long a worker may take to start or to end; nothing takes that long."""


class Worker:
    """A worker for the app that *name* names; *options* are those of its engine, those *before* the name are ours;
    *ready* is what it says when it is; *environ* is in its environment.

    Its output, and that of its children, is in ``said()``.
    """

    def __init__(
        self,
        name: str,
        *options: str,
        ready: str,
        path: str = "",
        before: Sequence[str] = (),
        environ: Mapping[str, str] = {},
    ) -> None:
        # All that it leaves behind when it is killed is in there too.
        self._directory = tempfile.TemporaryDirectory(prefix="bg-worker-", ignore_cleanup_errors=True)
        self._log = open(os.path.join(self._directory.name, "log"), "wb")  # noqa: SIM115  # closed with it
        # Where there is setpriv, the worker dies with the tests, however those end.
        guard = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        paths = [path, str(ROOT)]
        self.process = subprocess.Popen(
            [*guard, sys.executable, "-u", "-m", "bgmiddleware", "work", *before, name, *options],
            cwd=self._directory.name,
            env={
                **os.environ,
                **environ,
                "PYTHONPATH": os.pathsep.join(filter(None, paths)),
                "TMPDIR": self._directory.name,
            },
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        self._ready = ready

    def wait(self) -> None:
        """Wait until it is ready. Fails where it ends instead."""
        self.until(lambda: self._ready in self.said())
        assert self.process.poll() is None, self.said()

    @property
    def pid(self) -> int:
        return self.process.pid

    def said(self) -> str:
        return Path(self._log.name).read_text(errors="replace")

    def until(self, is_so: Callable[[], bool]) -> None:
        """Wait until something is so, or the worker has ended."""
        deadline = time.monotonic() + SECONDS
        while not is_so() and self.process.poll() is None:
            assert time.monotonic() < deadline, self.said()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.02)

    def end_by(self, number: signal.Signals) -> None:
        """Send it a signal until it has ended."""
        deadline = time.monotonic() + SECONDS
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.said()
            self.process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.5)

    def children(self) -> list[int]:
        """Return the pids of its children (Linux)."""
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    def kill_tree(self) -> None:
        """Kill it and its children at once, as a power failure would."""
        os.kill(self.pid, signal.SIGSTOP)
        for pid in [*self.children(), self.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(SECONDS)

    def close(self) -> int:
        """Have it end when its job has; return its status. Idempotent.

        RQ can miss a signal that comes between its last look for one and its wait for the next job, so the signal is
        sent again when half of the time is over.
        """
        self.process.terminate()
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self.process.wait(SECONDS / 2)
            self.process.terminate()
            return self.process.wait(SECONDS / 2)
        except subprocess.TimeoutExpired:
            self.kill_tree()
            raise AssertionError(f"it did not end:\n{self.said()}") from None
        finally:
            self._log.close()
            self._directory.cleanup()


@contextlib.contextmanager
def working(
    name: str, *options: str, ready: str, path: str = "", count: int = 1, before: Sequence[str] = ()
) -> Iterator[list[Worker]]:
    """Have *count* workers run."""
    with contextlib.ExitStack() as stack:
        workers = []
        for _ in range(count):
            worker = Worker(name, *options, ready=ready, path=path, before=before)
            stack.callback(worker.close)
            workers.append(worker)
        for worker in workers:
            worker.wait()
        yield workers
