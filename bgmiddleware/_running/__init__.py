"""A job runs: ``run`` runs one job anywhere, in a thread, a child process or a worker of an engine;
``works`` is what it does.

``job`` is what the job sees of itself, ``steps`` its parts, and ``questions`` what it asks its readers. ``exchange`` is
the server's side of PEP 3333, ``keeper`` sends output and renews the lease in the turns that ``keeping`` gives it,
``channels`` holds the bodies of request and response, ``recording`` makes a value of a request and a request of that
value again, and ``waiting`` keeps the claims of jobs that wait in this process.
"""

from .channels import open_request_body
from .exchange import Exchange
from .failures import log_failed, one_line
from .job import RunningJob
from .keeper import LEASE, RENEW_EVERY, patiently
from .questions import TIMEOUT, taken_answer
from .recording import (
    IN_MEMORY,
    MAX_BODY,
    Dropped,
    RecordedRequest,
    as_it_came,
    forget_body,
    plain_title,
    record_request,
    remember_body,
    rewound,
    title_of,
    without_traces,
)
from .run import Run, over_deadline
from .waiting import Waiting
from .works import Work, call_function, replay_request, within_request

__all__ = [
    "IN_MEMORY",
    "LEASE",
    "MAX_BODY",
    "RENEW_EVERY",
    "TIMEOUT",
    "Dropped",
    "Exchange",
    "RecordedRequest",
    "Run",
    "RunningJob",
    "Waiting",
    "Work",
    "as_it_came",
    "call_function",
    "forget_body",
    "log_failed",
    "one_line",
    "open_request_body",
    "over_deadline",
    "patiently",
    "plain_title",
    "record_request",
    "remember_body",
    "replay_request",
    "rewound",
    "taken_answer",
    "title_of",
    "within_request",
    "without_traces",
]
