"""The way to a Redis server: connections of this process, time-outs, what is tried again, and what an error becomes."""

import encodings.idna  # noqa: F401  # what connecting needs: where descriptors are used up, it is late to import it
import hashlib
import logging
import math
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit, urlunsplit

from ...errors import ConfigurationError, RegistryError
from .._trouble import Trouble
from .breaker import Breaker

try:
    import redis
    from redis.backoff import NoBackoff
    from redis.connection import parse_url
    from redis.retry import Retry
    from redis.sentinel import Sentinel
except ImportError as error:
    raise ImportError("RedisRegistry needs the extra redis: pip install 'bgmiddleware[redis]'") from error

__all__ = ["Address", "Call", "Damaged", "Link", "Server", "is_elsewhere"]

T = TypeVar("T")

_log = logging.getLogger("bgmiddleware")

_POLL_EVERY = 0.25
_APART = 0.05
_SENTINEL_PORT = 26379
_NOT_HERE = (
    redis.exceptions.BusyLoadingError,
    redis.exceptions.ClusterDownError,
    redis.exceptions.MasterDownError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.TryAgainError,
)
_SAID_NOT_HERE = re.compile(r"\b(READONLY|LOADING|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|UNBLOCKED)\b")  # within a script, too
_PARTS = {
    "create": ("_job",),
    "look": ("_job", "_found"),
    "write": ("_job", "_found"),
    "append": ("_job", "_found", "_bytes", "_times"),
    "times": ("_job", "_found"),
    "gap": ("_job", "_found", "_bytes"),
    "read": ("_job", "_found", "_bytes"),
    "cookies": ("_job", "_found"),
    "forget": ("_job", "_found"),
    "unremember": ("_job",),
    "enter": ("_index",),
    "file": ("_index",),
    "reserve": ("_index",),
    "keep": ("_index",),
    "name": ("_index",),
    "due": ("_index",),
    "hold": ("_index",),
    "waiting": ("_index",),
    "count": ("_index",),
    "history": ("_index",),
}


class _Script(NamedTuple):
    source: str
    sha: str


def _script(*parts: str) -> _Script:
    files = resources.files(__package__) / "lua"
    source = "\n".join((files / f"{part}.lua").read_text("utf-8") for part in parts)
    return _Script(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


# By their names, each with what comes before it.
_SCRIPTS = {name: _script(*parts, name) for name, parts in _PARTS.items()}


class Call(NamedTuple):
    """A script by its name, with its keys, which are of one slot, and its arguments behind the time."""

    name: str
    keys: Sequence[str]
    args: Sequence[Any] = ()
    once: bool = False
    """Whether to do it twice is not the same as to do it once."""


class Damaged(RegistryError):
    """What is stored under a name of ours is not ours, or not whole."""


class Address:
    """Where the server is and how to talk to it, from a URL. What is shown of it has no password."""

    def __init__(self, url: str, *, timeout: float) -> None:
        self.timeout = timeout
        self._sentinels: list[tuple[str, int]] = []  # none: the server is where the URL says
        self._service = ""
        try:
            if "+sentinel:" in url:
                url = self._take_sentinels(url)
            options: dict[str, Any] = parse_url(url)  # type: ignore[no-untyped-call]
            self._ask = {name: options.pop(name) for name in list(options) if name.startswith("sentinel_")}
            self._kind: Callable[..., Any] = options.pop("connection_class", redis.Connection)
            # The library's own retries are off: they repeat what must not be repeated, and hang for a minute. What is
            # ours is not for the URL to change.
            options |= {"socket_timeout": timeout, "socket_connect_timeout": timeout, "protocol": 2}
            options |= {"retry": Retry(NoBackoff(), 0), "retry_on_error": [], "retry_on_timeout": False}
            options |= {"decode_responses": False, "health_check_interval": 0}
            self._options = options
            self._kind(**options)  # opens nothing, but refuses what it does not know
        except (TypeError, ValueError, AttributeError, redis.RedisError):
            # Neither the URL nor what the library says of it is shown: there may be a password in it.
            raise ConfigurationError(
                "url: expected redis://…, rediss://…, unix://… or redis+sentinel://HOST:PORT,…/SERVICE, and what"
                " redis-py knows"
            ) from None
        self.shown = self._show(urlsplit(url).scheme)

    def _take_sentinels(self, url: str) -> str:
        """Take out of a URL who knows where the server is; return what it says of that server."""
        scheme, netloc, path, query, fragment = urlsplit(url)
        credentials, at, hosts = netloc.rpartition("@")
        for host in hosts.split(","):
            known = urlsplit(f"//{host}")
            if not known.hostname:
                raise ValueError("a sentinel has a host")
            self._sentinels.append((known.hostname, known.port or _SENTINEL_PORT))
        self._service, _, database = path.strip("/").partition("/")
        if not self._service:
            raise ValueError("sentinels know a service")
        return urlunsplit((scheme.partition("+")[0], f"{credentials}{at}localhost", f"/{database}", query, fragment))

    def _show(self, scheme: str) -> str:
        options = self._options
        if "path" in options:
            return f"unix://{options['path']}"
        if self._sentinels:
            known = ",".join(f"{host}:{port}" for host, port in self._sentinels)
            return f"{scheme}+sentinel://{known}/{self._service}/{options.get('db', 0)}"
        host = options.get("host", "localhost")
        return f"{scheme}://{host}:{options.get('port', 6379)}/{options.get('db', 0)}"

    def client(self) -> "redis.Redis":
        """Return a client with connections of its own; none is open yet."""
        if self._sentinels:
            own = {name.removeprefix("sentinel_"): value for name, value in self._ask.items()}
            asked = {"socket_timeout": self.timeout, "socket_connect_timeout": self.timeout, **own}
            options = {name: value for name, value in self._options.items() if name not in ("host", "port")}
            if self._kind is redis.SSLConnection:
                options["ssl"] = True
            sentinel = Sentinel(self._sentinels, sentinel_kwargs=asked, **options)  # type: ignore[no-untyped-call]
            client: redis.Redis = sentinel.master_for(self._service)  # type: ignore[no-untyped-call]
            return client
        pool = redis.ConnectionPool(self._kind, **self._options)
        return redis.Redis(connection_pool=pool)


class Link:
    """The connections of one process. Any thread may use them; a forked child makes a link of its own.

    Two clients: one for commands, of which each thread holds a connection for as long as a command takes; and one for
    those that block until they are woken, of which there are at most *max_waiting*.

    When a command times out, further ones fail at once until the server answers again: else all threads of a site would
    soon wait for a server that hangs.
    """

    def __init__(self, address: Address, max_waiting: int, trouble: Trouble) -> None:
        self.pid = os.getpid()
        self._shown = address.shown
        self._commands = address.client()
        self._waiting = address.client()
        self._slots = threading.BoundedSemaphore(max_waiting)
        # What is blocked is never silent for longer than a socket may be, so a dead server is noticed as soon.
        self._block = address.timeout * 0.8
        self._timeout = address.timeout
        self._trouble = trouble
        self._breaker = Breaker(self._answers, self._let_go)
        self._checked = False
        self.back_at = float("-inf")
        """When a connection broke, led to a server that is no primary, or was answered again after a time-out, by the
        monotonic clock."""

    def command(self, *parts: Any) -> Any:
        """Send one command that may safely be repeated, and return the answer."""
        return self._call(lambda: _execute(self._commands, *parts))

    def run(self, name: str, keys: Sequence[str], *args: Any) -> list[Any]:
        """Run a script; all of them may safely be repeated."""
        script = _SCRIPTS[name]

        def run() -> Any:
            try:
                return self._commands.evalsha(script.sha, len(keys), *keys, *args)
            except redis.exceptions.NoScriptError:  # a new server, or one that was restarted
                return self._commands.eval(script.source, len(keys), *keys, *args)

        reply: list[Any] = self._call(run)
        return reply

    def run_all(self, now: str, calls: Sequence[Call]) -> list[Any]:
        """Run scripts one after the other, all in one go. An answer that is an error is returned as one: see
        :meth:`checked`."""

        def run(calls: Sequence[Call]) -> list[Any]:
            pipeline = self._commands.pipeline(transaction=False)
            for name, keys, args, _ in calls:
                pipeline.evalsha(_SCRIPTS[name].sha, len(keys), *keys, now, *args)
            replies = list(pipeline.execute(raise_on_error=False))
            for reply in replies:
                if isinstance(reply, Exception) and is_elsewhere(reply):
                    raise reply
            return replies

        replies: list[Any] = self._call(lambda: run(calls))
        if any(isinstance(reply, redis.exceptions.NoScriptError) for reply in replies):
            for name in {call.name for call in calls}:
                self.command("SCRIPT", "LOAD", _SCRIPTS[name].source)
            done = [call.once and not isinstance(reply, Exception) for call, reply in zip(calls, replies, strict=True)]
            again = iter(
                self._call(lambda: run([call for call, is_done in zip(calls, done, strict=True) if not is_done]))
            )
            replies = [reply if is_done else next(again) for reply, is_done in zip(replies, done, strict=True)]
        return replies

    def checked(self, reply: Any) -> list[Any]:
        """Return an answer, or raise what it is."""
        if isinstance(reply, Exception):
            raise self._error(reply) from reply
        answer: list[Any] = reply
        return answer

    def pause(self, stream: str, after: str, seconds: float) -> None:
        """Block until *stream* has an entry behind *after*, at most *seconds*; may return before.

        Where all connections for this are taken, or the server takes no more of them, it is a short pause: so who
        waits looks again and again.
        """
        if not self._slots.acquire(timeout=max(0.0, min(seconds, _POLL_EVERY))):
            return
        try:
            milliseconds = math.ceil(1000 * max(0.001, min(seconds, self._block)))
            _execute(self._waiting, "XREAD", "BLOCK", milliseconds, "STREAMS", stream, after)
        except Exception as error:
            if not isinstance(error, (redis.ConnectionError, redis.TimeoutError)) and not is_elsewhere(error):
                raise self._error(error) from error
            if isinstance(error, redis.TimeoutError):
                self._breaker.open()
            self._let_go()
            time.sleep(max(0.0, min(seconds, _POLL_EVERY)))  # whoever looks next says what is wrong
        finally:
            self._slots.release()

    def close(self) -> None:
        """Close what is open."""
        self._breaker.end()
        self._commands.connection_pool.disconnect()
        self._waiting.connection_pool.disconnect()

    def _call(self, call: Callable[[], T]) -> T:
        if self._breaker.is_open:
            self._trouble.failed()
            raise RegistryError(f"{self._shown}: the server timed out and has not answered since")
        begun = time.monotonic()
        try:
            try:
                answer = self._checked_call(call)
            except Exception as error:
                # Once more, for the server may have closed a connection that nobody used for a while, or be no primary
                # any more. After a time-out never: the next one would take as long.
                is_cut = isinstance(error, redis.ConnectionError) and time.monotonic() - begun < self._timeout
                if not is_cut and not is_elsewhere(error):
                    raise
                self._let_go()
                answer = self._checked_call(call)
        except Exception as error:  # of the library's own, or of what is below it
            # Sentinels that hang are a connection that cannot be made, after as long.
            took_long = isinstance(error, redis.ConnectionError) and time.monotonic() - begun >= self._timeout
            if took_long or isinstance(error, redis.TimeoutError):
                self._breaker.open()
            self._trouble.failed()
            raise self._error(error) from error
        if self._trouble.told_until is not None:
            self._trouble.ended()
        return answer

    def _answers(self) -> bool:
        """Ask the server for nothing in particular; return whether it answers, or is known to be away."""
        begun = time.monotonic()
        try:
            self._commands.ping()
        except redis.TimeoutError:
            return False
        except redis.ConnectionError:
            return time.monotonic() - begun < self._timeout
        except Exception:  # an answer, though none that was hoped for
            return True
        return True

    def _checked_call(self, call: Callable[[], T]) -> T:
        if not self._checked:
            self._check_policy()
        return call()

    def _let_go(self) -> None:
        """Close the connections that nobody uses just now: the next one finds the server where it is by then."""
        self.back_at = time.monotonic()
        for client in (self._commands, self._waiting):
            client.connection_pool.disconnect(inuse_connections=False)

    def _error(self, error: Exception) -> RegistryError:
        said = str(error).partition("\n")[0][:200] or type(error).__name__
        if not isinstance(error, redis.RedisError):
            said = f"{type(error).__name__}: {said}"
        # Something else under one of our keys, or (an error of Lua) something else in one of its fields.
        kind = Damaged if "WRONGTYPE" in said or "attempt to " in said else RegistryError
        return kind(f"{self._shown}: {said}")

    def _check_policy(self) -> None:
        """Warn of a server that throws away records of running jobs when it is full."""
        try:
            memory = self._commands.info("memory")
        except redis.ResponseError:  # not everybody may ask
            memory = {}
        self._checked = True
        policy = str(memory.get("maxmemory_policy", ""))
        if policy.startswith("allkeys") and memory.get("maxmemory"):
            _log.warning(
                "%s evicts any key when it is full (maxmemory-policy %s): running jobs can vanish; "
                "set noeviction or one of volatile-*",
                self._shown,
                policy,
            )


class Server:
    """A server as all processes and threads see it: a link for each process, and the one time that counts.

    That is the server's: machines need not agree. *clock* stands in its place in tests.
    """

    def __init__(
        self,
        address: Address,
        *,
        max_waiting: int,
        clock: Callable[[], float] | None,
        count: Callable[[str, float], None] = lambda name, number: None,
    ) -> None:
        self._trouble = Trouble(count)
        self.shown = address.shown
        self._address = address
        self._max_waiting = max_waiting
        self._clock = clock
        self._link: Link | None = None
        self._ahead: float | None = None  # of this process's monotonic clock

    @property
    def link(self) -> Link:
        # Two threads may make one each at the same time: one of the two is let go after its first use.
        link = self._link
        if link is None or link.pid != os.getpid():
            link = self._link = Link(self._address, self._max_waiting, self._trouble)
        return link

    def run(self, name: str, keys: Sequence[str], *args: Any) -> list[Any]:
        """Run a script at this time."""
        return self.link.run(name, keys, self._now(), *args)

    def run_all(self, *calls: Call) -> list[Any]:
        """Run scripts at this time, one after the other, in one round trip. An answer that is an error is returned as
        one: see :meth:`checked`. Of what breaks off in between, the first ones were done."""
        return self.link.run_all(self._now(), calls)

    def checked(self, reply: Any) -> list[Any]:
        """Return an answer, or raise what it is."""
        return self.link.checked(reply)

    def time(self) -> float:
        """Return the time, as of the last answer."""
        if self._clock is not None:
            return self._clock()
        if self._ahead is None:
            try:
                seconds, microseconds = self.link.command("TIME")
            except RegistryError:
                return time.time()  # nobody shall fail who only asks for the time
            self.heard(int(seconds) + int(microseconds) / 1e6)
        return time.monotonic() + (self._ahead or 0.0)

    def heard(self, now: float) -> None:
        """Take note of the time that an answer says."""
        ahead = now - time.monotonic()
        # The answer that was the fastest to arrive knows best, unless clocks went apart since.
        if self._ahead is None or not self._ahead - _APART < ahead < self._ahead:
            self._ahead = ahead

    def close(self) -> None:
        """Close the connections of this process; the next call opens new ones."""
        link, self._link = self._link, None
        if link is not None and link.pid == os.getpid():
            link.close()

    def _now(self) -> str:
        return "" if self._clock is None else repr(self._clock())


def is_elsewhere(error: Exception) -> bool:
    """Whether an answer says that the server is not the one that takes calls now."""
    return isinstance(error, _NOT_HERE) or (
        isinstance(error, redis.ResponseError) and _SAID_NOT_HERE.search(str(error)) is not None
    )


def _execute(client: "redis.Redis", *parts: Any) -> Any:
    return client.execute_command(*parts)  # type: ignore[no-untyped-call]
