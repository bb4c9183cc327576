"""Jobs in a Redis or Valkey server: for the processes of any number of hosts.

The layout, with the prefix ``bg``. All keys of a job are in one slot of a cluster, and all of the index in another; so
what concerns both is done in two steps, the record first: it says what is true, and the index is corrected by it.

* ``bg:{KEY}``: a hash, the record. Beside it ``:request``, ``:output``, ``:body``: strings, the channels; ``:wake``: a
  stream of one entry, whose number is the end of the output, so that a reader who asks for what is behind its offset
  cannot miss it; ``:gone``: what is left for a while when the job has expired.
* ``{bg}:jobs``, ``:pending``, ``:running``, ``:due``, ``:ended``: sorted sets of keys (see ``lua/_index.lua``);
  ``{bg}:group:NAME``: who runs of a group; ``{bg}:secret``.

Only ended jobs have a time to live on the server. It is a little longer than ``ttl``, and each read compares the
instants exactly: so a job is never found with one half of its keys.
"""

import contextlib
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

from .._jobs import Channel, Job, JobState, Progress, RecordedResponse
from ..errors import (
    BadOffset,
    ConfigurationError,
    Fenced,
    JobExists,
    JobExpired,
    JobNotFound,
    QueueFull,
    RegistryError,
    RegistryFull,
)
from . import _changes as changes
from ._redis_link import Address, Link, Script
from .base import END, PAGE_BYTES, Evicted, Piece, Registry, Renewal

__all__ = ["RedisRegistry"]

_log = logging.getLogger("bgmiddleware")

_SCRIPTS = Script.all()
_STRING_BYTES = 512 * 1024 * 1024  # the most that a string of Redis holds
_LINGER = 2.0
_LOOK_AGAIN = 3600.0  # at jobs that run without a lease
_EVICT_EVERY = 1.0
_EVICT_AT_ONCE = 10
_TRIES = 100
_BATCH = 200
_APART = ("request", "output_end", "output_dropped", "body_end")  # what is not in the document of a record


class RedisRegistry(Registry):
    """Jobs in a Redis (5 or newer) or Valkey server, which all processes of a fleet share.

    *url*: ``redis://[user:password@]host[:port][/db]``, ``rediss://…`` for TLS, ``unix://path``; options of redis-py
    may follow as a query. *prefix* is how all keys begin: registries of different prefixes do not see each other.
    *timeout*: seconds that the server may take for an answer before it is a ``RegistryError``. *max_waiting*: how many
    connections this process opens to wait for output; who waits beyond that looks four times a second. The server's
    clock is the one that counts, so machines need not agree; only tests pass *clock*.

    An answer that does not arrive leaves open whether the call was done; it may be repeated. A server that lost a
    record, for it was restarted without a copy on disk, or evicted it, makes it ``JobNotFound``.
    """

    shared: ClassVar[bool] = True

    def __init__(
        self,
        url: str = "redis://localhost:6379/0",
        *,
        prefix: str = "bg",
        ttl: float = 3600.0,
        pending_ttl: float = 3600.0,
        max_jobs: int = 10_000,
        max_output: int = 16 * 1024 * 1024,
        max_result: int = 256 * 1024 * 1024,
        timeout: float = 5.0,
        max_waiting: int = 50,
        clock: Callable[[], float] | None = None,
    ) -> None:
        super().__init__(
            ttl=ttl,
            pending_ttl=pending_ttl,
            max_jobs=max_jobs,
            max_output=max_output,
            max_result=max_result,
            clock=clock or self._server_time,
        )
        if not re.fullmatch(r"[\w.:/-]{1,100}", prefix, re.ASCII):
            raise ConfigurationError.of_setting("prefix", prefix, "1 to 100 letters, digits and .:/_-")
        for name, value in {"timeout": timeout, "max_waiting": max_waiting}.items():
            if not value > 0:
                raise ConfigurationError.of_setting(name, value, "a number above 0")
        for name, value in {"max_output": max_output, "max_result": max_result}.items():
            if value > _STRING_BYTES:
                raise ConfigurationError.of_setting(name, value, f"at most {_STRING_BYTES}, as Redis has it")
        self.prefix = prefix
        self.max_waiting = max_waiting
        self._address = Address(url, timeout=timeout)
        self._own_clock = clock
        self._ahead: float | None = None  # of this process's monotonic clock, the server's
        self._index = [f"{{{prefix}}}:{name}" for name in ("jobs", "pending", "running", "due", "ended", "last")]
        self._link: Link | None = None
        self._evicted_at = -_EVICT_EVERY

    def __repr__(self) -> str:
        return f"<RedisRegistry {self._address.shown} {self.prefix}>"

    def add(self, job: Job) -> Job:
        self._evict_now_and_then()
        known, now = self._enter(job.key)
        job = replace(job, state=JobState.PENDING, created_at=now, expires_at=now + self.pending_ttl)
        args = (_nonce(), repr(job.expires_at), _document(job), _json(dict(job.request)), self.max_output)
        if self._run("create", job.key, *args)[0] != b"ok":
            if not known:
                self._file(self._look(job.key))  # the index had lost it
            raise JobExists(job.key)
        if known:  # of one that has expired
            self._file(_Stored(job, now, "", ""), anew=True)
        return job

    def get(self, key: str) -> Job:
        return self._look(key).seen

    def append(self, key: str, channel: Channel, offset: int, data: bytes, *, runner: str = "") -> int:
        most = self.max_result if channel is Channel.BODY else _STRING_BYTES
        answer, *end = self._run("append", key, channel.value, offset, data, _text(runner), most)
        match answer:
            case b"fenced":
                raise Fenced(key)
            case b"offset":
                raise BadOffset(end[0])
            case b"full":
                raise RegistryFull("response" if channel is Channel.BODY else channel.value, most)
        return int(end[0])

    def read(self, key: str, channel: Channel, offset: int, limit: int = PAGE_BYTES) -> Piece:
        _, begin, data = self._run("read", key, channel.value, offset, min(limit, PAGE_BYTES))
        return Piece(begin, data)

    def wait(self, key: str, offset: int, timeout: float) -> Job:
        deadline = time.monotonic() + timeout
        after = f"{min(max(offset, 0), END)}-1"
        while True:
            # The look comes first, and the entry stays: what is appended between the two does not block.
            stored = self._look(key)
            job = stored.seen
            left = deadline - time.monotonic()
            if job.output_end > offset or job.state.ended or left <= 0:
                return job
            limit = job.lease_expires_at if job.state is JobState.RUNNING else job.expires_at
            if limit is not None:
                left = min(left, limit - stored.now)
            self._connected().pause(self._keys(key)[5], after, left)

    def transition(
        self,
        key: str,
        expect: Collection[JobState],
        to: JobState,
        *,
        runner: str = "",
        lease: float | None = None,
        reason: str = "",
        response: RecordedResponse | None = None,
        receipt: Mapping[str, str | float] | None = None,
    ) -> bool:
        for _ in range(_TRIES):
            stored = self._look(key)
            job, now = stored.job, stored.now
            if not changes.may_change(job, now, expect, runner):
                return False
            if to is not JobState.RUNNING:
                new = changes.ended(job, now, to, ttl=self.ttl, reason=reason, response=response, receipt=receipt)
                if self._write(stored, new):
                    return True
                continue
            place = _nonce()
            new = changes.claimed(job, now, runner=runner, lease=lease, receipt=receipt)
            if not self._reserve(new, place):
                return False
            if self._write(stored, new, place):
                return True
            self._leave(new, place)
        raise self._too_busy(key)

    def renew(self, key: str, runner: str, *, lease: float | None = None, progress: Progress | None = None) -> Renewal:
        def renewed(stored: _Stored) -> Job | None:
            return changes.renewed(stored.job, stored.now, runner=runner, lease=lease, progress=progress)

        stored, ok = self._change(key, renewed)
        return Renewal(ok, stored.job.cancel_requested_at is not None)

    def request_cancel(self, key: str, reason: str = "cancelled on request") -> JobState:
        def asked(stored: _Stored) -> Job | None:
            return changes.asked_to_stop(stored.job, stored.now, ttl=self.ttl, reason=reason)

        return self._change(key, asked)[0].seen.state

    def position(self, key: str) -> int:
        if self.get(key).state is not JobState.PENDING:
            return 0
        place = self._connected().command("ZRANK", self._index[1], key)
        return 0 if place is None else int(place) + 1

    def take_cookies(self, key: str) -> bool:
        return bool(self._run("cookies", key, _nonce())[1])

    def discard(self, key: str) -> bool:
        try:
            done = bool(self._run("forget", key, "")[1])
        except (JobNotFound, JobExpired):
            return False
        if done:
            self._file_gone(key)
        return done

    def jobs(self, state: JobState | None = None, limit: int = 100, *, skip: int = 0) -> list[Job]:
        indexed = {JobState.PENDING: self._index[1], JobState.RUNNING: self._index[2]}
        index = self._index[0] if state is None else indexed.get(state, self._index[0])
        found: dict[str, Job] = {}  # by key: who comes meanwhile moves the others down
        begin = 0
        while len(found) < skip + limit:
            keys = self._connected().command("ZREVRANGE", index, begin, begin + _BATCH - 1)
            if not keys:
                break
            begin += len(keys)
            found |= {job.key: job for job in self._look_at_each(keys) if state in (None, job.state)}
        return list(found.values())[skip : skip + limit]

    def evict(self, limit: int = 1000) -> Evicted:
        _, expired, due = self._run_index("due", [], limit)
        return Evicted(sum(self._settle(key.decode()) for key in due), expired)

    def close(self) -> None:
        link, self._link = self._link, None
        if link is not None and link.pid == os.getpid():
            link.close()

    def secret(self) -> bytes:
        name = f"{{{self.prefix}}}:secret"
        link = self._connected()
        # Asked for each time: a server that was emptied gets a new one, which must be the same for all.
        stored = link.command("GET", name)
        if stored is None:
            link.command("SET", name, secrets.token_bytes(32), "NX")
            stored = link.command("GET", name)
        if stored is None or len(stored) != 32:
            raise RegistryError(f"{self._address.shown}: {name} is not a secret of 32 bytes")
        return bytes(stored)

    # The server.

    def _connected(self) -> Link:
        # Two threads may make one each at the same time: one of the two is let go after its first use.
        link = self._link
        if link is None or link.pid != os.getpid():
            link = self._link = Link(self._address, self.max_waiting)
        return link

    def _now(self) -> str:
        return "" if self._own_clock is None else repr(self._own_clock())

    def _server_time(self) -> float:
        if self._ahead is None:
            try:
                seconds, microseconds = self._connected().command("TIME")
            except RegistryError:
                return time.time()  # nobody shall fail who only asks for the time
            self._heard(int(seconds) + int(microseconds) / 1e6)
        return time.monotonic() + (self._ahead or 0.0)

    def _heard(self, now: float) -> None:
        self._ahead = now - time.monotonic()

    def _keys(self, key: str) -> list[str]:
        record = f"{self.prefix}:{{{key}}}"
        return [record, *(f"{record}:{name}" for name in ("gone", "request", "output", "body", "wake"))]

    def _run(self, script: str, key: str, *args: Any) -> list[Any]:
        """Run a script of one job."""
        reply = self._connected().run(_SCRIPTS[script], self._keys(key), self._now(), *args)
        match reply[0]:
            case b"missing":
                raise JobNotFound(key)
            case b"expired":
                raise JobExpired(key)
            case b"damaged":
                raise RegistryError(f"{self._address.shown}: bytes of the job {key[:8]}… are gone: were they evicted?")
        return reply

    def _run_index(self, script: str, groups: Iterable[str], *args: Any) -> list[Any]:
        keys = [*self._index, *map(self._group, groups)]
        return self._connected().run(_SCRIPTS[script], keys, self._now(), *args)

    def _group(self, name: str) -> str:
        # What of the name is no text (a lone surrogate) is written as its number is.
        return f"{{{self.prefix}}}:group:{name}".encode("utf-8", "backslashreplace").decode()

    # Records.

    def _look(self, key: str) -> "_Stored":
        stored = self._stored(key, self._run("look", key))
        self._heard(stored.now)
        return stored

    def _look_at_each(self, keys: list[bytes]) -> list[Job]:
        """Return the jobs of *keys* as they read, without those that are gone or damaged."""
        names = [key.decode() for key in keys]
        replies = self._connected().run_each(_SCRIPTS["look"], [self._keys(key) for key in names], self._now())
        found = []
        for key, reply in zip(names, replies, strict=True):
            if isinstance(reply, Exception):
                _log.warning("%s: the job %s… cannot be read: %s", self._address.shown, key[:8], reply)
            elif reply[0] == b"ok":
                with contextlib.suppress(RegistryError):
                    found.append(self._stored(key, reply).seen)
        return found

    def _stored(self, key: str, reply: list[Any]) -> "_Stored":
        _, now, op, document, environ, output, body, most, place = reply
        try:
            known = json.loads(document) | {"request": json.loads(environ or b"{}")}
            known |= {"output_end": int(output or 0), "body_end": int(body or 0)}
            known["output_dropped"] = _dropped(known["output_end"], int(most))
            return _Stored(Job.from_document(known), float(now), op.decode(), (place or b"").decode())
        except (AttributeError, KeyError, TypeError, ValueError):
            raise RegistryError(f"{self._address.shown}: the record of the job {key[:8]}… is damaged") from None

    def _write(self, stored: "_Stored", new: Job, place: str | None = None) -> bool:
        """Replace a record that is still what was read, and file the job as what it is now."""
        ends = []
        if new.state.ended:
            # What is left of it is remembered for as long again.
            ends = [_milliseconds(self.ttl + _LINGER), _milliseconds(2 * self.ttl + _LINGER)]
        place = stored.place if place is None else place
        until = "" if new.expires_at is None else repr(new.expires_at)
        args = (stored.op, _nonce(), new.state.value, until, _text(new.runner), place, _document(new), *ends)
        if self._run("write", new.key, *args)[0] != b"ok":
            return False
        self._file(_Stored(new, stored.now, "", place))
        return True

    def _change(self, key: str, change: Callable[["_Stored"], Job | None]) -> "tuple[_Stored, bool]":
        """Change a job unless *change* returns None; return what is stored then, and whether that was changed."""
        for _ in range(_TRIES):
            stored = self._look(key)
            new = change(stored)
            if new is None:
                return stored, False
            if self._write(stored, new):
                return stored._replace(job=new), True
        raise self._too_busy(key)

    def _too_busy(self, key: str) -> RegistryError:
        return RegistryError(f"{self._address.shown}: too many change the job {key[:8]}… at once")

    # The index.

    def _enter(self, key: str) -> tuple[bool, float]:
        """Take a place for a new job; return whether the index has one of this key already, and the time."""
        for chance in (1, 2):
            answer, now, *gone = self._run_index("enter", [], key, self.max_jobs, self.pending_ttl)
            for other in gone:
                with contextlib.suppress(JobNotFound, JobExpired):
                    self._run("forget", other.decode(), "expired")
            if answer != b"full":
                return answer == b"known", float(now)
            if chance == 1:
                self.evict(_EVICT_AT_ONCE)  # those that were never started make room too
        raise QueueFull(f"{self.max_jobs} jobs are waiting or running")

    def _file(self, stored: "_Stored", *, anew: bool = False) -> None:
        """Bring the index up to date. Where that fails it is done when the job is due: the record counts."""
        job = stored.job
        at = job.expires_at
        if job.state is JobState.RUNNING:
            at = stored.now + _LOOK_AGAIN if job.lease_expires_at is None else job.lease_expires_at
        where = "ended" if job.state.ended else job.state.value
        args = (job.key, where, repr(at), "anew" if anew else "", stored.place, _until(job))
        try:
            self._run_index("file", job.groups, *args)
        except RegistryError as error:
            _log.warning("the job %s… is filed later: %s", job.key[:8], error)

    def _file_gone(self, key: str) -> None:
        self._run_index("file", [], key, "gone", "", "", "", "")

    def _reserve(self, job: Job, place: str) -> bool:
        if not job.groups:
            return True
        answer = self._run_index("reserve", job.groups, place, _until(job), *job.groups.values())[0]
        return bool(answer == b"ok")

    def _leave(self, job: Job, place: str) -> None:
        for group in job.groups:
            self._connected().command("ZREM", self._group(group), place)

    def _evict_now_and_then(self) -> None:
        now = time.monotonic()
        if now - self._evicted_at < _EVICT_EVERY:
            return
        self._evicted_at = now
        if sum(self.evict(_EVICT_AT_ONCE)) == _EVICT_AT_ONCE:
            self._evicted_at = now - _EVICT_EVERY  # there is more: the next one goes on

    def _settle(self, key: str) -> bool:
        """Look at a job that is due. Make its loss permanent, and return whether this call did; or file it again."""
        try:
            stored = self._look(key)
        except (JobNotFound, JobExpired):
            self._file_gone(key)
            return False
        job, seen = stored.job, stored.seen
        if job.state.ended or not seen.state.ended:
            self._file(stored)
            return False
        new = changes.ended(job, stored.now, seen.state, ttl=self.ttl, reason=seen.reason, at=seen.ended_at)
        try:
            return self._write(stored, new)
        except (JobNotFound, JobExpired):
            return False


class _Stored(NamedTuple):
    """A record as it was at *now*, by the clock that counts; *op* is what was done to it last, *place* the name under
    which it takes one in its groups."""

    job: Job
    now: float
    op: str
    place: str

    @property
    def seen(self) -> Job:
        """The job as it reads."""
        return self.job.as_of(self.now)


def _document(job: Job) -> str:
    return _json({name: value for name, value in job.to_document().items() if name not in _APART})


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _nonce() -> str:
    """Return a name that nothing else has: who repeats a call that was done already is recognised by it."""
    return secrets.token_hex(8)


def _text(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _milliseconds(seconds: float) -> int:
    return int(1000 * seconds)


def _until(job: Job) -> str:
    return "+inf" if job.lease_expires_at is None else repr(job.lease_expires_at)


def _dropped(end: int, most: int) -> tuple[int, int] | None:
    """Return the range of output that is not kept: see ``lua/_bytes.lua``."""
    head = most // 2
    return None if end <= most else (head, end - (most - head))
