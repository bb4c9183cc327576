"""The outbox of a Redis registry: a sorted set that says when each text is due, and a hash of the texts."""

from typing import Any

from .._outbox import MOST, Outbox
from .link import Server

__all__ = ["RedisOutbox"]

_LONGEST = 2 * 86_400_000  # milliseconds after which what nobody looks after is forgotten

_PUT = """
local is_new = redis.call('ZSCORE', KEYS[1], ARGV[1]) == false
if is_new and redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[4]) then return 0 end
redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[5])
redis.call('PEXPIRE', KEYS[2], ARGV[5])
return 1
"""
_TAKE = """
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, 1)[1]
if not due then return false end
local text = redis.call('HGET', KEYS[2], due)
if not text then
    redis.call('ZREM', KEYS[1], due)
    return false
end
redis.call('ZADD', KEYS[1], ARGV[2], due)
return {due, text}
"""
_FIRST = """
local due = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
local text = due[1] and redis.call('HGET', KEYS[2], due[1])
return text and {due[1], due[2], text}
"""
_REMOVE = """
redis.call('ZREM', KEYS[1], ARGV[1])
return redis.call('HDEL', KEYS[2], ARGV[1])
"""


class RedisOutbox(Outbox):
    """Texts under two keys that begin with *prefix*."""

    def __init__(self, server: Server, prefix: str) -> None:
        self._server = server
        # The braces keep both on one server of a cluster.
        self._keys = f"{{{prefix}}}:due", f"{{{prefix}}}:texts"

    def put(self, id: str, at: float, text: str) -> bool:  # noqa: A002
        return bool(self._run(_PUT, id, _milliseconds(at), text, MOST, _LONGEST))

    def take(self, now: float, lease: float) -> tuple[str, str] | None:
        found = self._run(_TAKE, _milliseconds(now), _milliseconds(now + lease))
        return (found[0].decode(), found[1].decode()) if found else None

    def first(self) -> tuple[str, float, str] | None:
        found = self._run(_FIRST)
        return (found[0].decode(), float(found[1]) / 1000, found[2].decode()) if found else None

    def remove(self, id: str) -> None:  # noqa: A002
        self._run(_REMOVE, id)

    def size(self) -> int:
        return int(self._server.link.command("ZCARD", self._keys[0]))

    def _run(self, script: str, *arguments: Any) -> Any:
        return self._server.link.command("EVAL", script, len(self._keys), *self._keys, *arguments)


def _milliseconds(instant: float) -> int:
    return int(1000 * instant)
