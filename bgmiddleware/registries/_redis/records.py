"""The records of jobs and their bytes: each call is one script, on the seven keys of one job. See ``lua/_job.lua``."""

import contextlib
import json
import logging
import secrets
from itertools import chain
from typing import Any, NamedTuple

from ..._jobs import Channel, Job
from ...errors import BadOffset, Fenced, JobExpired, JobNotFound, RegistryFull
from .. import _changes as changes
from .._bounds import Bounds
from .._times import ENTRY_BYTES, Head, times_after
from ..base import Piece, Times
from .link import Call, Damaged, Server

__all__ = ["Records", "Stored", "nonce"]

_log = logging.getLogger("bgmiddleware")

_LINGER = 2.0  # seconds that the server keeps what has expired
_APART = ("request", "output_end", "output_dropped", "body_end")  # what is not in the document of a record


class Stored(NamedTuple):
    """A record as it was at *now*; *op* names what was done to it last, *place* what it takes in its groups."""

    job: Job
    now: float
    op: str = ""
    place: str = ""
    held_until: float | None = None
    """Until when the process is there in whose memory it waits; None: it does not wait in one."""
    is_recalled: bool = False
    """Whether it is what this process wrote, and not what was read just now."""

    @property
    def held(self) -> Job:
        """The job as long as its process is there."""
        return self.job if self.held_until is None else changes.held(self.job, self.held_until)

    @property
    def seen(self) -> Job:
        """The job as it reads."""
        return self.held.as_of(self.now)


class Records:
    """The jobs of a registry, each in a slot of its own."""

    def __init__(self, server: Server, prefix: str) -> None:
        self._server = server
        self._prefix = prefix

    def creating(self, job: Job, body: bytes, op: str, patience: float, max_output: int) -> Call:
        """Return the call that stores a new pending job, which may wait for *patience* seconds, with the *body* of its
        request; *op*: a nonce."""
        args = (op, repr(patience), _document(job), _json(dict(job.request)), max_output, body)
        return Call("create", self._keys(job.key), args)

    def created(self, job: Job, op: str, patience: float, reply: Any) -> Stored | None:
        """Return the record that was stored by that call; None where there is one that has not expired."""
        answer, now = self._server.checked(reply)
        if answer != b"ok":
            return None
        self._server.heard(at := float(now))
        return Stored(job.changed(created_at=at, expires_at=at + patience), at, op)

    def look(self, key: str) -> Stored:
        """Return a record; the job in it is as it was written, not as it reads."""
        stored = self._stored(key, self._run("look", key))
        self._server.heard(stored.now)
        return stored

    def look_at_each(self, keys: list[str]) -> list[Stored]:
        """Return the records of *keys*, without those that are gone or damaged."""
        found = []
        replies = self._server.run_all(*(Call("look", self._keys(key)) for key in keys))
        for key, reply in zip(keys, replies, strict=True):
            if isinstance(reply, Exception):
                _log.warning("%s: the job %s… cannot be read: %s", self._server.shown, key[:8], reply)
            elif reply[0] == b"ok":
                with contextlib.suppress(Damaged):
                    found.append(self._stored(key, reply))
        return found

    def writing(self, stored: Stored, new: Stored, ttl: float, least: tuple[int, int]) -> Call:
        """Return the call that replaces a record if it is still what was read, and if its output and body have *least*
        so many bytes. One that has ended is kept until it expires, and what is left of it is remembered for *ttl*
        seconds more."""
        job = new.job
        left = max(0.0, (job.expires_at or 0.0) - stored.now) + _LINGER
        kept_for = "" if job.kept else _milliseconds(left)
        ends = (kept_for, _milliseconds(left + ttl), int(job.holds_request)) if job.state.ended else ()
        until = "" if job.expires_at is None else repr(job.expires_at)
        args = (stored.op, new.op, job.state.value, until, _text(job.runner), new.place, _document(job), *least, *ends)
        return Call("write", self._keys(job.key), args)

    def written(self, key: str, reply: Any) -> bool:
        """Return whether that call replaced the record. Raises ``BadOffset`` where there are fewer bytes."""
        answer, *end = self._answered(key, self._server.checked(reply))
        if answer == b"short":
            raise BadOffset(end[0])
        return bool(answer == b"ok")

    def append(
        self, key: str, channel: Channel, offset: int, data: bytes, *, runner: str, most: int, times: Times
    ) -> int:
        """Add bytes to a channel that may have *most* of them; see :meth:`Registry.append`."""
        call = self.appending(key, channel, offset, data, runner=runner, most=most, times=times)
        return self.appended(key, channel, most, self._server.run(call.name, call.keys, *call.args))

    def appending(
        self, key: str, channel: Channel, offset: int, data: bytes, *, runner: str, most: int, times: Times = ()
    ) -> Call:
        """Return the call that does so."""
        args = (channel.value, offset, data, _text(runner), most, *chain(*times))
        return Call("append", self._keys(key), args)

    def appended(self, key: str, channel: Channel, most: int, reply: Any) -> int:
        """Return where the channel ends by what that call answered, or raise what that is."""
        answer, *end = self._answered(key, self._server.checked(reply))
        match answer:
            case b"fenced":
                raise Fenced(key)
            case b"offset":
                raise BadOffset(end[0])
            case b"full":
                raise RegistryFull("response" if channel is Channel.BODY else channel.value, most)
        return int(end[0])

    def leave_gap(self, key: str, offset: int, note: bytes, most: int, *, runner: str) -> int:
        """See :meth:`Registry.leave_gap`; up to *most* bytes of the gap are filled."""
        answer, *end = self._run("gap", key, Channel.OUTPUT.value, offset, _text(runner), note, most)
        if answer == b"fenced":
            raise Fenced(key)
        return int(end[0])

    def read(self, key: str, channel: Channel, offset: int, limit: int) -> Piece:
        """See :meth:`Registry.read`."""
        _, begin, data = self._run("read", key, channel.value, offset, limit)
        return Piece(begin, data)

    def times(self, key: str, offset: int) -> tuple[tuple[int, int], ...]:
        """See :meth:`Registry.times`; all of them."""

        def read(count: int) -> tuple[Head, bytes]:
            _, head, entries = self._run("times", key, ENTRY_BYTES * count)
            return Head.unpacked(head), entries

        return times_after(offset, read)

    def pause(self, key: str, offset: int, seconds: float) -> None:
        """Block until there is output behind *offset* or the job has ended, at most *seconds*, or for less."""
        self._server.link.pause(self._keys(key)[5], f"{offset}-1", seconds)

    def take_cookies(self, key: str) -> bool:
        """See :meth:`Registry.take_cookies`."""
        return bool(self._run("cookies", key, nonce())[1])

    def forget(self, key: str, *, as_expired: bool) -> bool:
        """Forget a job that does not run, and that it was there; or remember it *as_expired*, if it has ended."""
        return bool(self._run("forget", key, "expired" if as_expired else "")[1])

    def unremember(self, keys: list[str]) -> None:
        """Know no more that the jobs of *keys* were there and expired."""
        self._server.run_all(*(Call("unremember", self._keys(key)) for key in keys))

    def _keys(self, key: str) -> list[str]:
        record = f"{self._prefix}:{{{key}}}"
        return [record, *(f"{record}:{name}" for name in ("gone", "request", "output", "body", "wake", "times"))]

    def _run(self, script: str, key: str, *args: Any) -> list[Any]:
        return self._answered(key, self._server.run(script, self._keys(key), *args))

    def _answered(self, key: str, reply: list[Any]) -> list[Any]:
        match reply[0]:
            case b"missing":
                raise JobNotFound(key)
            case b"expired":
                raise JobExpired(key)
            case b"damaged":
                raise Damaged(f"{self._server.shown}: bytes of the job {key[:8]}… are gone: were they evicted?")
        return reply

    def _stored(self, key: str, reply: list[Any]) -> Stored:
        _, now, op, document, environ, output, body, max_output, place, head, floor, lost, created, until = reply
        try:
            known = json.loads(document) | {"request": json.loads(environ or b"{}")}
            if created is not None:  # nobody wrote it again since it came
                known |= {"created_at": float(created), "expires_at": float(until)}
            known |= {"output_end": int(output or 0), "body_end": int(body or 0)}
            bounds = Bounds.of(int(max_output))
            if floor is not None:
                bounds = Bounds(int(head), bounds.size - int(head), int(floor))
            known["output_dropped"] = bounds.dropped(known["output_end"]) or (lost and tuple(map(int, lost.split())))
            return Stored(Job.from_document(known), float(now), op.decode(), (place or b"").decode())
        except (AttributeError, KeyError, TypeError, ValueError):
            raise Damaged(f"{self._server.shown}: the record of the job {key[:8]}… is damaged") from None


def nonce() -> str:
    """Return a name that nothing else has: who repeats a call that was done already is recognised by it."""
    return secrets.token_hex(8)


def _document(job: Job) -> str:
    return _json({name: value for name, value in job.to_brief_document().items() if name not in _APART})


_json = json.JSONEncoder(separators=(",", ":")).encode


def _text(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _milliseconds(seconds: float) -> int:
    return int(1000 * seconds)
