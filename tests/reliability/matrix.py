"""Break things while jobs run, and see what becomes of them: each registry, each executor, each fault.

``python -m tests.reliability.matrix`` runs every cell with real processes and writes the table of
docs/explanation/reliability.rst; it ends with a status other than 0 where a cell is other than promised. Names of
columns or faults as arguments run only those, and write nothing.

A cell: a job prints numbered lines without pause; something breaks, while clients go on asking; it is mended; the job
ends. Then it is seen what is known of that job, and whether a new job runs.
"""

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from bgmiddleware._jobs import key_of
from bgmiddleware.registries import open_registry
from bgmiddleware.registries.base import END as END_OF_JOB
from tests.executors.engine_worker import Worker
from tests.kit.clients import Reply
from tests.kit.disks import mounted
from tests.kit.documents import PAGES
from tests.kit.processes import LONG, Server, gunicorn, running
from tests.kit.redis_server import RedisServer
from tests.kit.wall_clock import WallClock

__all__ = ["BEGIN", "COLUMNS", "DOCUMENT", "END", "FAULTS", "Column", "Fault", "Scene", "promise", "seen", "table"]

DOCUMENT = PAGES["reliability.rst"]
BEGIN = ".. The table is written by python -m tests.reliability.matrix.\n"
END = ".. End of the table.\n"

LEASE = 4.0
HOUR = 3600
LINE = 8
_BURST = 20  # lines, which a test waits for
_READY = {"rq": "Listening on", "celery": " ready."}
_CELERY = ("--loglevel", "INFO", "--without-mingle", "--without-gossip", "--concurrency", "2")

# What becomes of the job.
ENDS = "ends"
GAP = "ends, gap named"
LOST = "lost, output kept"
GONE = "unknown"


@dataclass(frozen=True)
class Column:
    """A registry and an executor."""

    registry: str
    executor: str
    in_ci: bool = True
    """Whether the tests run its cells; else only the generator of the table does, since they take long."""

    @property
    def name(self) -> str:
        return f"{self.registry}, {self.executor}"

    @property
    def is_engine(self) -> bool:
        return self.executor in _READY


COLUMNS = (
    Column("memory", "thread"),
    Column("spool", "thread"),
    Column("spool", "process", in_ci=False),
    Column("spool", "rq", in_ci=False),
    Column("redis", "thread"),
    Column("redis", "process", in_ci=False),
    Column("redis", "rq", in_ci=False),
    Column("redis", "celery", in_ci=False),
)


@dataclass
class Scene:
    """A site of one column that is served by real processes."""

    column: Column
    directory: Path
    clock: WallClock
    stack: contextlib.ExitStack
    redis: RedisServer | None = None
    broker: RedisServer | None = None
    workers: list[Worker] = field(default_factory=list)
    count: int = 0
    wrong: list[str] = field(default_factory=list)
    """What broke a promise while something was broken."""
    server: Server = field(init=False)

    @property
    def disk(self) -> Path:
        return self.directory / "disk"

    def environ(self) -> dict[str, str]:
        """Return what the processes of the site have in their environments."""
        options = {"ttl": 600.0}
        if self.redis is not None:
            url, options = self.redis.url, {**options, "timeout": 0.5}
        else:
            url = "memory:" if self.column.registry == "memory" else f"spool:{self.disk}/jobs"
        environ = {"SITE_REGISTRY": url, "SITE_REGISTRY_OPTIONS": json.dumps(options), "SITE_LEASE": str(LEASE)}
        environ |= {"SITE_THREADS": "no-threads", "TMPDIR": str(self.disk), **self.clock.environ}
        environ |= {"SITE_DIRECTORY": str(self.directory), "SITE_EXECUTOR": self.column.executor}
        if self.broker is not None:
            names = {"rq": f"rq:{self.broker.url}", "celery": "celery:tests.executors.celery_app:app"}
            environ |= {"SITE_EXECUTOR": names[self.column.executor], "CELERY_BROKER_URL": self.broker.url}
        return environ

    def serve(self) -> None:
        """Begin to serve it."""
        workers = 1 if self.column.registry == "memory" else 2
        options = ("-k", "gthread", "--threads", "4", "--graceful-timeout", "60")
        server = gunicorn(self.directory, *options, workers=workers, **self.environ())
        self.server = self.stack.enter_context(running(server))

    def work(self) -> None:
        """Begin a worker of the engine, if there is one."""
        if self.column.is_engine:
            options = _CELERY if self.column.executor == "celery" else ()
            worker = Worker(
                "tests.kit.served_site:middleware",
                *options,
                ready=_READY[self.column.executor],
                environ=self.environ(),
            )
            self.workers.append(worker)
            self.stack.callback(worker.close)
            worker.wait()


@contextlib.contextmanager
def served(column: Column) -> Iterator[Scene]:
    """Serve a site of a column."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bg-matrix-")))
        stack.enter_context(mounted(directory / "disk", "size=24m,mode=700"))
        scene = Scene(column, directory, WallClock(directory), stack)
        if column.registry == "redis":
            keeping = ("--appendonly", "yes", "--appendfsync", "always")
            scene.redis = stack.enter_context(RedisServer(*keeping, environ=scene.clock.environ))
        if column.is_engine:
            scene.broker = stack.enter_context(RedisServer())
        scene.serve()
        scene.work()
        yield scene


@dataclass
class Running:
    """The job that a cell is about."""

    scene: Scene
    gate: str
    target: str
    web: int
    """The process that took its request."""
    others: list[str] = field(default_factory=list)
    """The targets of jobs that clients were told of meanwhile."""

    @property
    def state(self) -> Any:
        server = self.scene.server
        return server.until(lambda reply: reply.status == 200, "GET", f"{self.target}&_view=status").json

    @cached_property
    def runner(self) -> int:
        """The process that runs it."""
        return int(self.state["receipt"]["runner"].partition(":")[2])

    def printed(self) -> bytes:
        """Return its output, when some lines more are there than now."""
        server = self.scene.server
        there = len(server.output(self.target))
        deadline = time.monotonic() + LONG
        while len(output := server.output(self.target)) < there + _BURST * LINE:
            assert time.monotonic() < deadline, (self.state, server.log)
        return output

    def may_end(self) -> None:
        (self.scene.directory / self.gate).touch()


def begun(scene: Scene) -> Running:
    """Start a job; return when it prints."""
    scene.count += 1
    gate = f"gate-{scene.count}"
    reply = scene.server.until(lambda reply: reply.status == 303, "POST", f"/x/talk?{gate}")
    job = Running(scene, gate, f"/x/talk{reply['Location']}", int(reply["Worker"]))
    scene.server.begun(job.target, "0000019\n")
    assert job.runner
    return job


# The faults. What is mended at the end of the block is broken within it.


@contextlib.contextmanager
def kill_web(job: Running) -> Iterator[None]:
    os.kill(job.web, signal.SIGKILL)
    yield


@contextlib.contextmanager
def kill_runner(job: Running) -> Iterator[None]:
    os.kill(job.runner, signal.SIGKILL)
    yield


@contextlib.contextmanager
def kill_worker(job: Running) -> Iterator[None]:
    for worker in job.scene.workers:
        worker.kill_tree()
    job.scene.workers.clear()
    yield
    job.scene.work()


@contextlib.contextmanager
def stop_runner(job: Running) -> Iterator[None]:
    """Stop the process that runs the job for longer than its lease, unless all of the site is in it."""
    runner = job.runner
    os.kill(runner, signal.SIGSTOP)
    if job.scene.column.registry != "memory":
        until = time.monotonic() + 2 * LEASE
        job.scene.server.until(
            lambda reply: reply.json["state"] == "lost" or time.monotonic() > until,
            "GET",
            f"{job.target}&_view=status&_wait=1",
        )
    os.kill(runner, signal.SIGCONT)
    job.printed()
    yield


@contextlib.contextmanager
def end_web(job: Running) -> Iterator[None]:
    """Stop the server as a site does, and start it again."""
    server = job.scene.server
    server.send(signal.SIGTERM)
    server.said("Handling signal: term")
    job.may_end()
    server.wait()
    job.scene.serve()
    yield


@contextlib.contextmanager
def end_worker(job: Running) -> Iterator[None]:
    """Stop the workers of the engine as a site does, and start one again."""
    for worker in job.scene.workers:
        worker.process.terminate()
    job.may_end()
    for worker in job.scene.workers:
        worker.close()
    job.scene.workers.clear()
    job.scene.work()
    yield


@contextlib.contextmanager
def full_disk(job: Running) -> Iterator[None]:
    ballast = job.scene.disk / "jobs" / ".ballast" if job.scene.column.registry == "spool" else job.scene.disk / "full"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    yield
    ballast.unlink()


@contextlib.contextmanager
def no_descriptors(job: Running) -> Iterator[None]:
    """Let the process that runs the job open nothing more until the job has ended, or for some seconds."""
    runner = job.runner
    before = resource.prlimit(runner, resource.RLIMIT_NOFILE)
    used = set(map(int, os.listdir(f"/proc/{runner}/fd")))
    resource.prlimit(runner, resource.RLIMIT_NOFILE, (min(set(range(len(used) + 1)) - used), before[1]))
    job.may_end()
    # No client asks: a server that cannot take a connection ends.
    with open_registry(job.scene.environ()["SITE_REGISTRY"]) as registry:
        registry.wait(key_of(job.target.rpartition("=")[2]), END_OF_JOB, 2 * LEASE)
    with contextlib.suppress(ProcessLookupError):  # it was a process for this job
        resource.prlimit(runner, resource.RLIMIT_NOFILE, before)
    yield


@contextlib.contextmanager
def no_threads(job: Running) -> Iterator[None]:
    (job.scene.directory / "no-threads").touch()
    yield
    (job.scene.directory / "no-threads").unlink()


def _redis(job: Running) -> RedisServer:
    assert job.scene.redis is not None
    return job.scene.redis


def _broker(job: Running) -> RedisServer:
    assert job.scene.broker is not None
    return job.scene.broker


def _said(server: RedisServer, *parts: str) -> None:
    import redis

    with redis.Redis.from_url(server.url) as client:
        client.execute_command(*parts)  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def killed_redis(job: Running) -> Iterator[None]:
    _redis(job).kill()
    yield
    _redis(job).start()


@contextlib.contextmanager
def paused_redis(job: Running) -> Iterator[None]:
    _redis(job).pause()
    yield
    _redis(job).resume()


@contextlib.contextmanager
def empty_redis(job: Running) -> Iterator[None]:
    _redis(job).kill()
    _emptied(_redis(job))
    _redis(job).start()
    yield


@contextlib.contextmanager
def older_redis(job: Running) -> Iterator[None]:
    server = _redis(job)
    copy = Path(server.directory, "copy")
    shutil.copytree(server.directory, copy, ignore=shutil.ignore_patterns("copy", "log"))
    job.printed()
    server.kill()
    _emptied(server)
    shutil.copytree(copy, server.directory, dirs_exist_ok=True)
    shutil.rmtree(copy)
    server.start()
    yield


def _emptied(server: RedisServer) -> None:
    for path in Path(server.directory).iterdir():
        if path.name not in ("log", "copy"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextlib.contextmanager
def read_only_redis(job: Running) -> Iterator[None]:
    _said(_redis(job), "REPLICAOF", "127.0.0.1", "1")
    yield
    _said(_redis(job), "REPLICAOF", "NO", "ONE")


@contextlib.contextmanager
def full_redis(job: Running) -> Iterator[None]:
    _said(_redis(job), "CONFIG", "SET", "maxmemory", "1")
    yield
    _said(_redis(job), "CONFIG", "SET", "maxmemory", "0")


@contextlib.contextmanager
def killed_broker(job: Running) -> Iterator[None]:
    _broker(job).kill()
    yield
    _broker(job).start()
    if not any(worker.process.poll() is None for worker in job.scene.workers):
        job.scene.workers.clear()
        job.scene.work()


@contextlib.contextmanager
def paused_broker(job: Running) -> Iterator[None]:
    _broker(job).pause()
    yield
    _broker(job).resume()


@contextlib.contextmanager
def moved_clock(job: Running) -> Iterator[None]:
    """Set the clock of all processes of the site, and of its Redis, back by an hour, forward, and right again."""
    for ahead in (-HOUR, HOUR, 0):
        job.scene.clock.set(ahead)
        job.printed()
    yield


@dataclass(frozen=True)
class Fault:
    """Something that breaks, and what is promised of the job that runs: by ``registry executor``, ``registry *``,
    ``* executor`` or ``* *``; the first that is there counts, and where none is, the fault cannot be."""

    name: str
    breaks: Callable[[Running], AbstractContextManager[None]]
    promises: Mapping[str, str]
    asks: bool = False
    """Whether clients ask while it lasts."""
    excuse: str = "nothing"
    """The reason for which a job may fail that begins while it lasts."""


_OF_REDIS = {"redis *": ENDS}
_OF_BROKER = {"* rq": ENDS, "* celery": ENDS}

FAULTS = (
    Fault("``kill -9`` of the web process", kill_web, {"memory *": GONE, "* thread": LOST, "* *": ENDS}),
    Fault("``kill -9`` of the job's own process", kill_runner, {"* process": LOST, "* rq": LOST, "* celery": LOST}),
    Fault("``kill -9`` of the engine's worker with its processes", kill_worker, {"* rq": LOST, "* celery": LOST}),
    Fault("``SIGSTOP`` of the job's process for twice its lease, ``SIGCONT``", stop_runner, {"* *": ENDS}),
    Fault("``SIGTERM`` of the server, which is started again", end_web, {"memory *": GONE, "* *": ENDS}),
    Fault("``SIGTERM`` of the engine's workers", end_worker, {"* rq": ENDS, "* celery": ENDS}),
    Fault("the disk is full for a while", full_disk, {"memory *": ENDS, "spool *": ENDS}, asks=True),
    Fault("no free descriptors in the job's process", no_descriptors, {"spool *": ENDS, "redis *": ENDS}),
    Fault("no new threads for a while", no_threads, {"* *": ENDS}, asks=True, excuse="can't start new thread"),
    Fault("Redis is killed and started again", killed_redis, _OF_REDIS, asks=True),
    Fault("Redis hangs (``SIGSTOP``) for a while", paused_redis, _OF_REDIS, asks=True),
    Fault("Redis comes back empty", empty_redis, {"redis *": GONE}),
    Fault("Redis comes back older", older_redis, {"redis *": GAP}),
    Fault("Redis is read-only for a while", read_only_redis, _OF_REDIS, asks=True),
    Fault("Redis is out of memory for a while", full_redis, _OF_REDIS, asks=True),
    Fault("the engine's broker is killed and comes back empty", killed_broker, _OF_BROKER, asks=True),
    Fault("the engine's broker hangs for a while", paused_broker, _OF_BROKER, asks=True),
    Fault("all clocks are set back, forward, and right again", moved_clock, {"* *": ENDS}),
)


def promise(column: Column, fault: Fault) -> str | None:
    """Return what is promised of a job in this cell; None: there is no such cell."""
    names = (f"{column.registry} {column.executor}", f"{column.registry} *", f"* {column.executor}", "* *")
    return next((fault.promises[name] for name in names if name in fault.promises), None)


def seen(scene: Scene, fault: Fault) -> str:
    """Break something while a job runs; return what became of it, or what broke a promise."""
    scene.wrong.clear()
    job = begun(scene)
    acknowledged = job.printed()
    with fault.breaks(job):
        if fault.asks:
            _ask(job)
    job.may_end()
    outcome = _outcome(job, acknowledged)
    for other in job.others:
        state = scene.server.ended(other)
        if state["state"] != "finished" and fault.excuse not in state["reason"]:
            scene.wrong.append(f"a job that was started meanwhile: {state['state']}, {state['reason']}")
    new = begun(scene)
    new.may_end()
    again = _outcome(new, b"")
    if again != ENDS:
        scene.wrong.append(f"a new job: {again}")
    return "; ".join([outcome, *scene.wrong])


def _ask(job: Running) -> None:
    """Ask for all that clients ask for: each is answered, as always or by 503 with ``Retry-After``."""
    views = [("GET", f"{job.target}&_view={view}") for view in ("status", "log&_offset=0", "page", "result")]
    for method, target in (*views, ("POST", f"/x/talk?{job.gate}"), *views, ("GET", "/fast")):
        reply = job.scene.server.request(method, target)
        if reply.status == 303:
            job.others.append(f"/x/talk{reply['Location']}")
        elif not _is_expected(reply) or (target == "/fast" and reply.status != 200):
            asked = target.partition("_view=")[2] or target
            job.scene.wrong.append(f"{method} {asked}: {reply.status} {reply.text[:100]}")


def _is_expected(reply: Reply) -> bool:
    if reply.status == 502:  # where this takes longer than its lease, a job reads as lost until that is renewed
        return "its runner vanished" in reply.text
    return reply.status in (200, 202) or (reply.status == 503 and "Retry-After" in reply)


def _outcome(job: Running, acknowledged: bytes) -> str:
    server = job.scene.server

    def is_over(reply: Reply) -> bool:
        if reply.status != 200:
            return reply.status == 404
        state = reply.json["state"]
        # What runs on in a process that stood still for too long reads as lost until that renews its lease.
        return state not in ("pending", "running") and (state != "lost" or not Path(f"/proc/{job.runner}").exists())

    reply = server.until(is_over, "GET", f"{job.target}&_view=status&_wait=1")
    if reply.status == 404:
        return GONE
    state, reason = reply.json["state"], reply.json["reason"]
    kept = server.output(job.target)
    if not kept.startswith(acknowledged) and not _names_gaps(kept):
        return f"{state}, and bytes that a client had are not there"
    if state == "lost":
        whole = b"".join(b"%07d\n" % number for number in range(len(kept) // LINE + 1))
        return LOST if whole.startswith(kept) else f"lost, and its output is not as it was: {kept[-200:]!r}"
    if state != "finished":
        return f"{state}: {reason}"
    lines = int(server.request("GET", f"{job.target}&_view=result").text.split()[0])
    missing = _missing(kept, lines)
    if missing:
        return f"finished, and {len(missing)} of {lines} lines are missing without a word: {kept[:1000]!r}"
    return GAP if _names_gaps(kept) else ENDS


_NAMED = re.compile(rb"\[bytes (\d+) to (\d+) of the output (?:could not be stored|are lost)")


def _names_gaps(kept: bytes) -> list[tuple[int, int]]:
    return [(int(begin), int(end)) for begin, end in _NAMED.findall(kept)]


def _missing(kept: bytes, lines: int) -> list[int]:
    """Return the lines that are neither there nor in a range that the output names."""
    there = {int(number) for number in re.findall(rb"\d{7}(?=\n)", kept)}
    gaps = _names_gaps(kept)
    absent = set(range(lines)) - there
    return sorted(
        line for line in absent if not any(begin < (line + 1) * LINE and line * LINE < end for begin, end in gaps)
    )


# The table.


def table(outcomes: Mapping[tuple[str, str], str]) -> str:
    """Return the table, of what was seen by the names of column and fault."""
    head = ["", *(f"``{column.registry}``, ``{column.executor}``" for column in COLUMNS)]
    rows = [head]
    for fault in FAULTS:
        cells = [outcomes.get((column.name, fault.name), "–") for column in COLUMNS]
        rows.append([fault.name, *cells])
    lines = [".. list-table::", "   :header-rows: 1", "   :stub-columns: 1", ""]
    for row in rows:
        lines += [f"   {'* -' if not number else '  -'} {cell}".rstrip() for number, cell in enumerate(row)]
    return "\n".join(lines) + "\n"


def promised() -> dict[tuple[str, str], str]:
    """Return what is promised, by the names of column and fault."""
    cells = {(column.name, fault.name): promise(column, fault) for column in COLUMNS for fault in FAULTS}
    return {names: outcome for names, outcome in cells.items() if outcome is not None}


def main(chosen: Sequence[str]) -> int:
    """Run the cells and write the table."""
    outcomes: dict[tuple[str, str], str] = {}
    columns = [column for column in COLUMNS if column.name in chosen]
    faults = [fault for fault in FAULTS if any(word in fault.name for word in chosen)]
    for column in columns or COLUMNS:
        with served(column) as scene:
            for fault in faults or FAULTS:
                expected = promise(column, fault)
                if expected is None:
                    continue
                begun_at = time.monotonic()
                outcome = outcomes[column.name, fault.name] = seen(scene, fault)
                wrong = "" if outcome == expected else f" (promised: {expected})"
                print(f"{column.name}: {fault.name}: {outcome}{wrong}, {time.monotonic() - begun_at:.1f} s", flush=True)
    right = promised()
    if any(right[names] != outcome for names, outcome in outcomes.items()):
        return 1
    if outcomes.keys() == right.keys():
        before, _, rest = DOCUMENT.read_text("utf-8").partition(BEGIN)
        DOCUMENT.write_text(f"{before}{BEGIN}\n{table(outcomes)}\n{END}{rest.partition(END)[2]}", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
