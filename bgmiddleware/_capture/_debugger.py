"""``breakpoint()`` and ``pdb.set_trace()`` in a job: there is no terminal to debug at, so say how to debug instead."""

import functools
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from ._streams import job_output

__all__ = ["HOOKS"]


def _hook_pdb(module: Any) -> None:
    # The method, not the function: that stops in its caller's frame, which would be ours.
    set_trace = module.Pdb.set_trace

    @functools.wraps(set_trace)
    def say_or_set_trace(self: Any, frame: FrameType | None = None, *args: Any, **options: Any) -> None:
        frame = sys._getframe(1) if frame is None else frame
        output = job_output()
        if output is None or "stdin" in output.assigned:  # a job that brings its own terminal can debug
            set_trace(self, frame, *args, **options)
            return
        sys.stderr.write(
            f"breakpoint at {frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}: a job has no"
            " terminal, so the debugger does not start and the job goes on. To debug, start the server with"
            " BGMIDDLEWARE_FOREGROUND=1 in its environment and send this request again.\n"
        )

    module.Pdb.set_trace = say_or_set_trace


HOOKS: dict[str, Callable[[Any], None]] = {"pdb": _hook_pdb}
"""By the modules that they are called with."""
