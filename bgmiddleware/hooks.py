"""What a site does when a job has ended: ``on_end=`` of the middleware."""

import base64
import binascii
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from typing import Any

from ._ground.posting import checked_url, post
from ._jobs import Job, JobState
from .errors import ConfigurationError

__all__ = ["OnEnd", "Webhook", "hooks_of", "message_of", "webhook"]

OnEnd = Callable[[Job], object]

_ENDS = tuple(state.value for state in JobState if state.ended)
_SHORTEST_SECRET, _LONGEST_SECRET = 24, 64  # bytes, as Standard Webhooks has it


class Webhook:
    """An address that is told of the end of jobs, by Standard Webhooks. Made by :func:`webhook`."""

    def __init__(self, url: str, shown: str, key: bytes, events: frozenset[str], allow_private: bool) -> None:
        self.shown = shown
        self.events = events
        self.name: str = hashlib.sha256(url.encode()).hexdigest()[:16]
        """What its messages are stored under: nothing of the URL, which may contain a secret."""
        self._url = url
        self._key = key
        self._allow_private = allow_private

    def __repr__(self) -> str:
        return f"webhook({self.shown}/…)"

    def __call__(self, job: Job) -> None:
        """Deliver at once, once. The middleware does not call this: it has an outbox."""
        self.deliver(job.key, message_of(job))

    def deliver(self, id: str, body: str) -> int:  # noqa: A002  # it is what it is
        """Send one message, signed, and return the status of the answer. Raises ``OSError`` or ``HTTPException``."""
        instant, data = str(int(time.time())), body.encode()
        signed = hmac.digest(self._key, f"{id}.{instant}.".encode() + data, "sha256")
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "bgmiddleware",
            "webhook-id": id,
            "webhook-timestamp": instant,
            "webhook-signature": f"v1,{base64.b64encode(signed).decode()}",
        }
        return post(self._url, data, headers, allow_private=self._allow_private)


def webhook(url: str, secret: str, *, events: Collection[str] = _ENDS, allow_private: bool = False) -> Webhook:
    """Return a hook that posts the end of a job to *url*, signed with *secret* as Standard Webhooks says.

    *secret*: 24 to 64 bytes in Base64, with or without ``whsec_`` before it. *events*: the states of the jobs that it
    tells of. *allow_private*: whether the host may have a private address, and the URL may begin with ``http://``.
    Raises ``ConfigurationError``, which shows neither the secret nor the path of the URL.
    """
    try:
        shown = checked_url(url, allow_private=allow_private)
    except ValueError as error:
        raise ConfigurationError.of_setting("webhook url", "…", f"a URL that begins with https://: {error}") from None
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except (AttributeError, ValueError, binascii.Error):
        key = b""
    if not _SHORTEST_SECRET <= len(key) <= _LONGEST_SECRET:
        raise ConfigurationError.of_setting("webhook secret", "…", "whsec_ and 24 to 64 bytes in Base64")
    if isinstance(events, str) or not events or not set(events) <= set(_ENDS):
        raise ConfigurationError.of_setting("webhook events", events, f"some of {', '.join(_ENDS)}")
    return Webhook(url, shown, key, frozenset(events), allow_private)


def message_of(job: Job) -> str:
    """Return the message that tells of the end of a job, as JSON."""
    ended = datetime.fromtimestamp(job.ended_at or 0.0, UTC)
    data = {
        "key": job.key,
        "title": job.title,
        "state": job.state.value,
        "reason": job.reason,
        "owner": job.owner,
        "version": job.version,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "ended_at": job.ended_at,
        "status_code": None if job.response is None else job.response.code,
        "output": job.output_end,
        "retry": _retry(job),
    }
    return json.dumps({"type": f"job.{job.state.value}", "timestamp": ended.isoformat(), "data": data})


def _retry(job: Job) -> dict[str, int | bool] | None:
    if job.tries is None:
        return None
    return {"try": job.tries.number, "of": job.tries.of, "is_over": not job.is_tried_again}


def hooks_of(hooks: object) -> tuple[OnEnd, ...]:
    """Return what a middleware's option ``on_end`` says: one hook, or a list of them."""
    found: tuple[Any, ...] = tuple(hooks) if isinstance(hooks, list | tuple) else (hooks,)
    if not all(map(callable, found)) or isinstance(hooks, Mapping):
        raise ConfigurationError.of_setting("on_end", hooks, "functions of a Job, or hooks.webhook(…)")
    names = [hook.name for hook in found if isinstance(hook, Webhook)]
    if len(set(names)) < len(names):  # what one is told of, the other one would take out of the outbox
        raise ConfigurationError.of_setting("on_end", hooks, "one webhook(…) of a URL, with all its events")
    return found
