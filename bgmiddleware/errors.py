"""What can go wrong, as a tree.

* :class:`BackgroundError`
    + :class:`ConfigurationError` (also a :class:`ValueError`)
    + :class:`JobNotFound`
    + :class:`JobExpired`
    + :class:`QueueFull`
    + :class:`NoAnswer` (also a :class:`TimeoutError`)
    + :class:`BadRequestBody`
        - :class:`BodyTooLarge`
    + :class:`RegistryError`
        - :class:`BadOffset`
        - :class:`Fenced`
        - :class:`JobExists`
        - :class:`RegistryFull`
* :class:`JobCancelled` (a :class:`BaseException`, so that ``except Exception`` in a view does not swallow it)
"""

from collections.abc import Iterable

__all__ = [
    "BackgroundError",
    "BadOffset",
    "BadRequestBody",
    "BodyTooLarge",
    "ConfigurationError",
    "Fenced",
    "JobCancelled",
    "JobExists",
    "JobExpired",
    "JobNotFound",
    "NoAnswer",
    "QueueFull",
    "RegistryError",
    "RegistryFull",
]


class BackgroundError(Exception):
    """The base of all errors that this library raises for its callers to catch."""


class ConfigurationError(BackgroundError, ValueError):
    """A setting is wrong; the message names the setting and what is allowed."""

    @classmethod
    def of_setting(cls, name: str, value: object, allowed: str | Iterable[str]) -> "ConfigurationError":
        """Say that the setting *name* cannot be *value*, and what it can be."""
        if not isinstance(allowed, str):
            allowed = "one of " + ", ".join(sorted(allowed))
        return cls(f"{name} = {value!r}: expected {allowed}")


class JobNotFound(BackgroundError):
    """No job of this key is known, nor remembered."""

    def __init__(self, key: str) -> None:
        super().__init__(f"there is no job {key[:8]}…")
        self.key = key


class JobExpired(BackgroundError):
    """A job of this key ended more than its TTL ago and is forgotten."""

    def __init__(self, key: str) -> None:
        super().__init__(f"the job {key[:8]}… has expired")
        self.key = key


class QueueFull(BackgroundError):
    """There is no room for another job now; ask again in *retry_after* seconds."""

    def __init__(self, reason: str, *, retry_after: float = 5.0) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class NoAnswer(BackgroundError, TimeoutError):
    """Nobody answered a question of a job in time, see :func:`bgmiddleware.ask`."""

    def __init__(self, question: str, seconds: float) -> None:
        super().__init__(f"nobody answered within {seconds:g} s: {question}")


class BadRequestBody(BackgroundError):
    """The body of a request cannot be recorded; *status* is the HTTP answer that says why."""

    def __init__(self, reason: str, *, status: int = 400) -> None:
        super().__init__(reason)
        self.status = status


class BodyTooLarge(BadRequestBody):
    """The body of a request is larger than *limit* bytes."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"the request body is larger than {limit} bytes", status=413)
        self.limit = limit


class RegistryError(BackgroundError):
    """A registry refused or could not do what was asked."""


class BadOffset(RegistryError):
    """An append did not begin at the end of its channel, which is at *end*."""

    def __init__(self, end: int) -> None:
        super().__init__(f"the channel ends at {end}")
        self.end = end


class Fenced(RegistryError):
    """Only the runner that holds the claim may do this, and the caller does not (any more)."""

    def __init__(self, key: str) -> None:
        super().__init__(f"the job {key[:8]}… is not this runner's to write")
        self.key = key


class JobExists(RegistryError):
    """There is a job of this key already."""

    def __init__(self, key: str) -> None:
        super().__init__(f"there is a job {key[:8]}… already")
        self.key = key


class RegistryFull(RegistryError):
    """A bound in bytes is reached: *what* may not grow beyond *limit*."""

    def __init__(self, what: str, limit: int) -> None:
        super().__init__(f"the {what} is larger than {limit} bytes")
        self.limit = limit


class JobCancelled(BaseException):
    """Raised inside a job at its next print, ``progress()`` or ``check()`` after a cancel was asked for.

    A ``BaseException``: ``finally`` blocks run, ``except Exception`` does not swallow it. They may print. Code that
    swallows it and goes on is told again at each later print, ``progress()`` or ``check()``.
    """

    def __init__(self, reason: str = "cancelled on request") -> None:
        super().__init__(reason)
        self.reason = reason
