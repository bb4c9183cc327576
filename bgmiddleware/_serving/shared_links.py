"""The links by which an owner shows a job to others: what stands in the place of a token says which job, what of it,
and until when, signed with the registry's secret. Nobody can find the token by it."""

import re
from typing import NamedTuple

from .._ground.webob import SignedSerializer
from .._jobs import KEY_LENGTH, Job
from ..registries.base import Registry

__all__ = ["IN_PLACE_OF_TOKEN", "MARK", "OWN", "Share", "opened", "signed"]

MARK = "share."
OWN = "own."
"""Stands before a key, where an owner has a link to a job of his: a registry knows no tokens."""
IN_PLACE_OF_TOKEN = rf"share\.[A-Za-z0-9_-]{{80,600}}|own\.[0-9a-f]{{{KEY_LENGTH}}}"
"""What may stand where a token does, as a regular expression."""

SCOPES = {
    "output": frozenset({"list", "output"}),
    "result": frozenset({"list", "result"}),
    "both": frozenset({"list", "output", "result"}),
}
"""What may be shared, with the rights to it."""

_ID = re.compile(r"[A-Za-z0-9_-]{1,32}")


class Share(NamedTuple):
    """What a link says: the *key* of a job, the *id* of the link, its *scope*, and the instant *until* which it leads
    there."""

    key: str
    id: str
    scope: str
    until: float

    @property
    def rights(self) -> frozenset[str]:
        """What the link gives the right to."""
        return SCOPES[self.scope]

    def is_of(self, job: Job, now: float) -> bool:
        """Whether *job* is shown by this link at *now*: it is not over, and was not taken back."""
        return now < self.until and job.shares.get(self.id) == {"scope": self.scope, "until": self.until}


def signed(registry: Registry, share: Share) -> str:
    """Return what stands in the place of a token. The same share gives the same text."""
    return MARK + _serializer(registry).dumps([*share]).decode()


def opened(registry: Registry, text: str) -> Share | None:
    """Return the share that a text stands for; None where we did not sign it."""
    try:
        key, number, scope, until = _serializer(registry).loads(text.removeprefix(MARK).encode())
    except (TypeError, ValueError):
        return None
    return Share(key, number, scope, until) if scope in SCOPES and _ID.fullmatch(number) else None


def _serializer(registry: Registry) -> SignedSerializer:
    return SignedSerializer(registry.secret().hex(), "bgmiddleware.share")
