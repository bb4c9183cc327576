"""Time several things fairly on a machine that does other things too."""

import gc
import sys
import time
from collections.abc import Callable, Mapping

__all__ = ["compared", "verdict"]


def compared(candidates: Mapping[str, Callable[[int], None]], *, rounds: int, calls: int) -> dict[str, float]:
    """Return for each candidate the least ns of one call.

    Each is told how many calls to make. They take turns, *rounds* times, each round beginning with another one: what
    disturbs the machine for a while disturbs all of them. What is left of it in the minima is little.
    """
    names = list(candidates)
    best = dict.fromkeys(names, float("inf"))
    gc.collect()
    gc.disable()
    try:
        for turn in range(rounds):
            shift = turn % len(names)
            for name in names[shift:] + names[:shift]:
                begun = time.perf_counter_ns()
                candidates[name](calls)
                best[name] = min(best[name], (time.perf_counter_ns() - begun) / calls)
    finally:
        gc.enable()
    return best


def verdict(value: float, budget: float) -> str:
    """Say whether *value* is within its *budget*."""
    return "met" if value <= budget else "MISSED"


def header(title: str) -> str:
    """Return the line above a table: what was measured, on what."""
    return f"{title} — Python {sys.version.split()[0]}"
