"""Time several things fairly on a machine that does other things too."""

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Mapping

__all__ = ["ROWS", "compared", "header", "verdict"]

ROWS = "BENCHMARK_ROWS"
"""The variable with the file that rows of the common table are appended to."""


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


def verdict(value: float, budget: float, what: str = "", floor: float | None = None) -> str:
    """Say whether *value* is within its *budget*; both are negative where at least the budget is wanted.

    Where all benchmarks are run together, *what* was measured is a row of their table, beside its *floor*.
    """
    rows = os.environ.get(ROWS)
    if rows and what:
        row = {"what": what, "value": abs(value), "budget": abs(budget), "least": budget < 0, "floor": floor}
        with open(rows, "a", encoding="utf-8") as file:
            file.write(json.dumps(row | {"met": value <= budget}) + "\n")
    return "met" if value <= budget else "MISSED"


def header(title: str) -> str:
    """Return the line above a table: what was measured, on what."""
    return f"{title} — Python {sys.version.split()[0]}"
