"""Whose output is this? Stand-ins for ``sys.stdout`` and ``sys.stderr``, and what makes them see all that a job prints.

``_output``: where one job's prints go; ``_foreground``: what a request printed that is no job yet; ``_pipes``: what
children of a job write to. ``_files``, ``_descriptors``: a process that runs one job at a time. ``_streams``: the
stand-ins, and the context variables that route; ``_system``: where ``print`` finds them. ``_hooks``: threads, forks,
children and logging; ``_pools``, ``_bars``, ``_debugger``: what jobs share and do not know of, hooked by ``_imports``.
Standard library only.
"""

from ._descriptors import own_descriptors
from ._files import Outlet
from ._foreground import ForegroundOutput
from ._install import error_stream, install
from ._output import JobOutput, Output
from ._streams import bound, current, current_output, detached, restore, route, use_output
from ._system import replaced, write_late

__all__ = [
    "ForegroundOutput",
    "JobOutput",
    "Outlet",
    "Output",
    "bound",
    "current",
    "current_output",
    "detached",
    "error_stream",
    "install",
    "own_descriptors",
    "replaced",
    "restore",
    "route",
    "use_output",
    "write_late",
]
