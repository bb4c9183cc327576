"""What other processes do in the tests of shared registries: each function is the work of one child process.

``python -m bgmiddleware.testing.registry_children OPENER LOCATION FUNCTION JSON`` opens the registry by a function
``module:function`` of the location and of settings, says so with a line, waits for a line, and
calls the function with the arguments of the JSON object. Each line it prints is a JSON value; the last one is what the
function returned.
"""

import hashlib
import itertools
import json
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

from .._ground.loading import loaded
from .._jobs import Channel, Job, JobState, key_of
from ..errors import BackgroundError, Fenced, JobExists, JobExpired, JobNotFound
from ..registries.base import Registry

LONG = 120.0
ENDED = "finished job"


def chunks_of(seed: int, count: int, largest: int) -> list[bytes]:
    """Return what a writer of this *seed* writes, chunk by chunk: every process knows it."""
    chance = random.Random(seed)
    return [chance.randbytes(chance.randrange(1, largest)) for _ in range(count)]


def say(value: Any) -> None:
    print(json.dumps(value), flush=True)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def read_all(registry: Registry, key: str, channel: Channel = Channel.OUTPUT) -> bytes:
    """Return what is kept."""
    data = b""
    piece = registry.read(key, channel, 0)
    while piece.data:
        data += piece.data
        piece = registry.read(key, channel, piece.end)
    return data


def followed(registry: Registry, key: str) -> bytes:
    return b"".join(piece.data for piece in registry.follow(key))


def written(registry: Registry, name: str, chunks: list[bytes], runner: str) -> Iterator[int]:
    """Claim the job, write the chunks and finish it; yield each end that was acknowledged."""
    key = key_of(name)
    assert registry.claim(key, runner, lease=LONG)
    end = 0
    for chunk in chunks:
        end = registry.append(key, Channel.OUTPUT, end, chunk, runner=runner)
        registry.append(key, Channel.BODY, end - len(chunk), chunk[::-1], runner=runner)
        yield end
    assert registry.finish(key, runner, JobState.FINISHED)


# The work of a child.


def write_and_follow(registry: Registry, own: str, seed: int, others: list[str]) -> dict[str, str]:
    """Write one's own job while one reads those of the others; return the digests of all that was read."""
    for end in written(registry, own, chunks_of(seed, 60, 3000), own):
        for other in others:
            registry.read(key_of(other), Channel.OUTPUT, end)
    return {name: digest(followed(registry, key_of(name))) for name in [own, *others]}


def claim_each(registry: Registry, names: list[str], runner: str) -> list[str]:
    return [name for name in names if registry.claim(key_of(name), runner, lease=LONG)]


def take_cookies_of_each(registry: Registry, names: list[str]) -> list[str]:
    return [name for name in names if registry.take_cookies(key_of(name))]


def evict_until_nothing_is_due(registry: Registry) -> list[int]:
    lost = evicted = 0
    while any(count := registry.evict(3)):
        lost, evicted = lost + count.lost, evicted + count.evicted
    return [lost, evicted]


def cancel(registry: Registry, name: str, reason: str) -> str:
    return registry.request_cancel(key_of(name), reason)


def append(registry: Registry, name: str, offset: int, text: str, runner: str) -> int:
    return registry.append(key_of(name), Channel.OUTPUT, offset, text.encode(), runner=runner)


def renew(registry: Registry, name: str, runner: str, lease: float) -> list[bool]:
    return list(registry.renew(key_of(name), runner, lease=lease))


def finish(registry: Registry, name: str, runner: str) -> bool:
    return registry.finish(key_of(name), runner, JobState.FINISHED)


def discard(registry: Registry, name: str) -> bool:
    return registry.discard(key_of(name))


def wait(registry: Registry, name: str, offset: int) -> list[Any]:
    """Return what the job is when the wait ends, or the error."""
    say("waiting")
    try:
        job = registry.wait(key_of(name), offset, LONG)
    except (JobNotFound, JobExpired) as error:
        return [type(error).__name__]
    return [job.state, job.output_end]


def secret(registry: Registry) -> str:
    return registry.secret().hex()


def add(registry: Registry, names: list[str]) -> int:
    for name in names:
        registry.add(Job(key_of(name), name))
    return len(names)


def take_each_name(registry: Registry, names: list[str], runner: str) -> list[str]:
    """Add a job for each of *names*, and free each second one again; return who held each in the end."""
    holders = []
    for name in names:
        key = key_of(f"{name} of {runner}")
        try:
            holders.append(registry.add(Job(key, name, name=name, keeps_name=True)).key)
        except JobExists as error:
            holders.append(error.key)
    return holders


def run_to_the_end(registry: Registry, seed: int) -> dict[str, Any]:
    """Leave a finished job behind; return it and what is in it."""
    key = registry.add(Job(key_of(ENDED), ENDED, owner="ann ☃", groups={"report": 2})).key
    for _ in written(registry, ENDED, chunks_of(seed, 40, 5000), "child"):
        pass
    contents = {channel.value: digest(read_all(registry, key, channel)) for channel in (Channel.OUTPUT, Channel.BODY)}
    return {"job": registry.get(key).to_document(), **contents}


def write_until_killed(registry: Registry, name: str, seed: int, largest: int) -> None:
    """Say each end that was acknowledged. Who reads them kills this process at some time."""
    key = registry.add(Job(key_of(name), name)).key
    assert registry.claim(key, "the killed", lease=LONG)
    end = 0
    for chunk in itertools.cycle(chunks_of(seed, 100, largest)):
        if end + len(chunk) > registry.max_output:  # who kills this process takes his time: no byte shall be dropped
            signal.pause()
        end = registry.append(key, Channel.OUTPUT, end, chunk, runner="the killed")
        say(end)


def run_jobs_until_killed(registry: Registry, name: str, seed: int) -> None:
    """Run one job after another, and say which have ended."""
    for number in itertools.count():
        own = f"{name}, {number}"
        registry.add(Job(key_of(own), own))
        for _ in written(registry, own, chunks_of(seed, 3, 5000), own):
            registry.renew(key_of(own), own, lease=LONG)
        say(own)


def leave_unfinished(registry: Registry, name: str, text: str, lease: float) -> None:
    key = registry.add(Job(key_of(name), name)).key
    registry.claim(key, "the gone", lease=lease)
    say(registry.append(key, Channel.OUTPUT, 0, text.encode(), runner="the gone"))
    os._exit(0)


def stop_in_mid_job(registry: Registry, name: str, lease: float) -> list[Any]:
    """Stop, as a laptop that sleeps; when continued, say what is left of the claim."""
    key = registry.add(Job(key_of(name), name)).key
    registry.claim(key, "the paused", lease=lease)
    end = registry.append(key, Channel.OUTPUT, 0, b"before", runner="the paused")
    say("stops")
    os.kill(os.getpid(), signal.SIGSTOP)
    try:
        end = registry.append(key, Channel.OUTPUT, end, b"after", runner="the paused")
        fenced = False
    except Fenced:
        fenced = True
    renewed = registry.renew(key, "the paused", lease=LONG).ok
    return [fenced, renewed, registry.finish(key, "the paused", JobState.FINISHED), end]


def fork_and_write(registry: Registry, children: int, seed: int) -> list[str]:
    """Use the registry, fork, and use it in all of these processes at once; return the digests of their jobs."""
    names = [f"process {number}" for number in range(children + 1)]
    for name in names:
        registry.add(Job(key_of(name), name))
    chunks = chunks_of(seed, 60, 3000)
    pids = []
    for name in names[1:]:
        pid = os.fork()
        if not pid:
            code = 1
            try:
                for end in written(registry, name, chunks, name):
                    assert registry.wait(key_of(name), end - 1, LONG).output_end == end
                assert registry.wait(key_of(names[0]), 2**62, LONG).state is JobState.FINISHED
                registry.close()
                code = 0
            finally:
                os._exit(code)
        pids.append(pid)
    for _ in written(registry, names[0], chunks, names[0]):
        pass
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert codes == [0] * children, codes
    assert {digest(read_all(registry, key_of(name), Channel.BODY)) for name in names} == {
        digest(b"".join(chunk[::-1] for chunk in chunks))
    }
    return [digest(read_all(registry, key_of(name))) for name in names]


def use_what_was_opened_before_the_fork(registry: Registry) -> list[Any]:
    """In a child that was forked in the midst of a job: it writes on, and so does its parent after it."""
    key = registry.add(Job(key_of("one"), "one")).key
    registry.claim(key, "both", lease=LONG)
    registry.append(key, Channel.OUTPUT, 0, b"parent ", runner="both")
    before = registry.secret()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            registry.append(key, Channel.OUTPUT, 7, b"child ", runner="both")
            code = 0 if registry.secret() == before else 2
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    registry.append(key, Channel.OUTPUT, 13, b"parent", runner="both")
    registry.finish(key, "both", JobState.FINISHED)
    return [code, read_all(registry, key).decode()]


def main() -> None:
    opener, location, name, arguments = sys.argv[1:]
    given = json.loads(arguments)
    with loaded("opener", opener)(location, **given.pop("settings", {})) as registry:
        say("ready")
        sys.stdin.readline()
        begun = time.monotonic()
        try:
            say(globals()[name](registry, **given))
        except BackgroundError as error:
            say({"error": repr(error), "after": time.monotonic() - begun})


if __name__ == "__main__":
    main()
