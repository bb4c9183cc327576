"""Tools for the tests of a site: jobs that end within their request, a client's way to a job's end, and a clock.

The modules ``registries``, ``shared_registries`` and ``executors`` have the tests that every registry and executor
passes, and ``plugin`` a fixture for pytest. They need pytest; this module does not.
"""

from .clock import Clock
from .following import Followed, follow
from .inline import InlineExecutor, inline

__all__ = ["Clock", "Followed", "InlineExecutor", "follow", "inline"]
