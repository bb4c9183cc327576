"""Names of who runs a job."""

import functools
import itertools
import secrets
import socket

__all__ = ["new_runner", "where"]

_counted = itertools.count()


def new_runner(pid: int) -> str:
    """Return a name for one run in the process *pid*, this one, that no other run has, now or later."""
    return f"{_name_of_process(pid)}-{next(_counted)}"


@functools.lru_cache(1)  # and not for each run: to ask the system takes longer than the rest of a claim
def where(pid: int) -> str:
    """Return the host and the process *pid* of it, for people."""
    return f"{socket.gethostname()}:{pid}"


@functools.lru_cache(1)
def _name_of_process(pid: int) -> str:
    return f"{pid}-{secrets.token_hex(8)}"  # a later process may have the number again
