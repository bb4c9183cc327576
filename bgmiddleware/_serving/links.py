"""Links between jobs: a registry knows no tokens, so what a job has of another one's is for its own token to open."""

import hashlib
import hmac
import uuid

from .._jobs import key_of
from .shared_links import OWN

__all__ = ["key_in", "operators_link", "sealed", "unsealed"]


def sealed(token: str, under: str) -> str:
    """Return a text that gives *token* only to a client with the token *under*; empty where one of them is none.

    It is what a mask hides that is made of *under*, and used for this one token and never again.
    """
    if token.startswith(OWN) or under.startswith(OWN):  # an owner's link: to him a key is enough
        return f"{token.removeprefix(OWN) if token.startswith(OWN) else key_of(token)}:"
    try:
        hidden = uuid.UUID(token).int ^ _mask(under, key_of(token))
        uuid.UUID(under)
    except ValueError:  # what stands for a token, such as a share
        return ""
    return f"{key_of(token)}:{hidden:032x}"


def unsealed(text: str, under: str) -> str | None:
    """Return the token in a sealed text; None where it was not sealed under this one."""
    key, _, hidden = text.partition(":")
    try:
        token = str(uuid.UUID(int=int(hidden, 16) ^ _mask(under, key)))
    except ValueError:
        return None
    return token if hmac.compare_digest(key_of(token), key) else None


def operators_link(key: str) -> str:
    """Return a link that leads operators to the job of a *key*, and nobody else: there is no token in it."""
    return f"{key}:"


def key_in(link: str) -> str:
    """Return the key of the job that a link is to, which every link has; empty where there is no link."""
    return link.partition(":")[0]


def _mask(under: str, key: str) -> int:
    return int.from_bytes(hmac.digest(under.encode(), b"bgmiddleware link " + key.encode(), hashlib.sha256)[:16])
