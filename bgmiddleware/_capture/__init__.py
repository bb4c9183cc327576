"""Whose output is this? Stand-ins for ``sys.stdout`` and ``sys.stderr``, and what makes them see all that a job prints.

``_output``: where one job's prints go; ``_files``: what its children write to; ``_descriptors``: file descriptors 1 and
2 of a process that runs one job. ``_streams``: the stand-ins, and the one context variable that routes. ``_hooks``:
threads, pools, forks, children and logging. Standard library only.
"""

from ._descriptors import own_descriptors
from ._files import open_output_file, refuse_more
from ._output import ForegroundOutput, JobOutput, Output
from ._streams import (
    bound,
    current,
    current_output,
    detached,
    error_stream,
    install,
    use_output,
    write_late,
)

__all__ = [
    "ForegroundOutput",
    "JobOutput",
    "Output",
    "bound",
    "current",
    "current_output",
    "detached",
    "error_stream",
    "install",
    "open_output_file",
    "own_descriptors",
    "refuse_more",
    "use_output",
    "write_late",
]
