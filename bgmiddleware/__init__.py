"""Slow WSGI endpoints in the background: a redirect at once, the output live, the response when it is there.

``app = BackgroundMiddleware(app)`` is all that an app needs. Registries and executors that need other libraries are
imported by their own paths.
"""

from . import hooks, marks, owners, redact
from ._capture import detached
from ._context import ask, background, backgrounder, current_job, progress, step, track
from ._ground import version as _version
from ._jobs import Channel, Job, JobState, Priority, Progress, Question, RecordedResponse, Step, Steps, StepState
from ._middleware import BackgroundMiddleware
from ._running import Run, RunningJob
from ._serving import PageParts
from .errors import (
    BackgroundError,
    BadOffset,
    BadRequestBody,
    BodyTooLarge,
    ConfigurationError,
    Fenced,
    JobCancelled,
    JobExists,
    JobExpired,
    JobNotFound,
    NoAnswer,
    QueueFull,
    RegistryError,
    RegistryFull,
)
from .executors.base import Executor
from .executors.thread import ThreadExecutor
from .registries.base import Registry
from .registries.memory import MemoryRegistry

__version__ = _version.VERSION

__all__ = [
    "BackgroundError",
    "BackgroundMiddleware",
    "BadOffset",
    "BadRequestBody",
    "BodyTooLarge",
    "Channel",
    "ConfigurationError",
    "Executor",
    "Fenced",
    "Job",
    "JobCancelled",
    "JobExists",
    "JobExpired",
    "JobNotFound",
    "JobState",
    "MemoryRegistry",
    "NoAnswer",
    "PageParts",
    "Priority",
    "Progress",
    "Question",
    "QueueFull",
    "RecordedResponse",
    "Registry",
    "RegistryError",
    "RegistryFull",
    "Run",
    "RunningJob",
    "Step",
    "StepState",
    "Steps",
    "ThreadExecutor",
    "ask",
    "background",
    "backgrounder",
    "current_job",
    "detached",
    "hooks",
    "marks",
    "owners",
    "progress",
    "redact",
    "step",
    "track",
]
