"""Jobs for the tests of capture: really run, each in a thread of its own, their output read from the registry."""

import gc
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterable
from contextvars import Context
from pathlib import Path
from typing import Any

from bgmiddleware import MemoryRegistry
from bgmiddleware._capture import JobOutput, install, use_output
from bgmiddleware._jobs import Channel, Job, key_of, new_token
from bgmiddleware._running import Run, call_function

LONG = 120.0
"""Seconds that nothing takes, unless it hangs."""


class RunningInThread:
    """A job that is running, or has ended: what it printed, and how it ended."""

    def __init__(
        self, function: Callable[[], Any], registry: MemoryRegistry | None = None, *, takes_logging: bool = True
    ) -> None:
        self.registry = MemoryRegistry() if registry is None else registry
        self.key = key_of(new_token())
        self.registry.add(Job(self.key, "GET /"))
        work = call_function(function)
        self.run = Run(self.key, "GET /", self.registry, work, Context(), takes_logging=takes_logging)
        self._thread = threading.Thread(target=self.run, name="job", daemon=True)
        self._thread.start()

    def join(self) -> "RunningInThread":
        self._thread.join(LONG)
        assert not self._thread.is_alive(), "the job hangs"
        return self

    @property
    def job(self) -> Job:
        return self.registry.get(self.key)

    @property
    def output(self) -> bytes:
        self.registry.get(self.key)
        data = b""
        while piece := self.registry.read(self.key, Channel.OUTPUT, len(data)).data:
            data += piece
        return data

    @property
    def text(self) -> str:
        return self.output.decode()

    def wait_for(self, text: str) -> None:
        """Block until the job's output contains *text*."""
        seen = b""
        for piece in self.registry.follow(self.key):
            assert piece.data, f"waited in vain for {text!r}; there is {seen!r}"
            seen += piece.data
            if text.encode() in seen:
                return
        raise AssertionError(f"the job ended without {text!r}: {seen!r}")


def run_job(function: Callable[[], Any], registry: MemoryRegistry | None = None, **options: Any) -> str:
    """Run *function* as a job and return what it printed, a traceback included."""
    return RunningInThread(function, registry, **options).join().text


class Kept:
    """A job's output that is kept in a list of chunks, without a registry; the late writes too."""

    def __init__(self, store: Callable[[bytes], None] | None = None, **options: Any) -> None:
        self.chunks: list[bytes] = []
        self.late: list[str] = []
        self.output = JobOutput(store or self.chunks.append, self._write_late, self._write_late, job=self, **options)
        self.output.begin()

    def _write_late(self, text: str) -> int:
        self.late.append(text)
        return len(text)

    @property
    def data(self) -> bytes:
        self.output.drain()
        return b"".join(self.chunks)

    def run(self, function: Callable[[], Any]) -> Any:
        install()
        with use_output(self.output):
            return function()


def in_thread(function: Callable[[], Any]) -> None:
    """Call *function* in a new thread, and wait for its end."""
    thread = threading.Thread(target=function)
    thread.start()
    thread.join(LONG)
    assert not thread.is_alive(), "the thread hangs"


def run_python(script: str, *, stdin: str = "", options: Iterable[str] = ()) -> tuple[str, str]:
    """Run *script* in a process of its own, warnings being errors; return its stdout and stderr."""
    root = Path(__file__).absolute().parent.parent.parent
    command = [
        sys.executable,
        "-W",
        "error",
        "-W",
        "ignore:'cgi' is deprecated",
        *options,
        "-c",
        textwrap.dedent(script),
    ]
    done = subprocess.run(
        command,
        input=stdin.encode(),
        capture_output=True,
        timeout=2 * LONG,
        env={**os.environ, "PYTHONPATH": str(root)},
        cwd=root,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode(), done.stderr.decode()


def open_files() -> int:
    """Return how many file descriptors this process has."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))
