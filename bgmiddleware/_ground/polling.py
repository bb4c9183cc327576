"""Waiting for a descriptor."""

import select

__all__ = ["is_readable"]


def is_readable(number: int, seconds: float) -> bool:
    """Whether there is something to read from a descriptor within *seconds*, or its end."""
    if not hasattr(select, "poll"):  # Windows, and eventlet takes it away
        return bool(select.select([number], [], [], seconds)[0])
    poll = select.poll()  # unlike select() for descriptors of any number
    poll.register(number, select.POLLIN)
    return bool(poll.poll(seconds * 1000))
