"""A marked request becomes a job: it is recorded, joined or admitted, added to the registry, submitted and answered.

``starter`` does so step by step; ``joining`` finds the job of a repeated request, ``untouched`` answers without a job
what was done within ``promote_after``, and ``options`` checks what the site configured.
"""

from .options import (
    check_functions,
    check_numbers,
    check_places,
    check_switches,
    check_texts,
    limits_of,
    priorities_of,
)
from .starter import Starter, WSGIApplication

__all__ = [
    "Starter",
    "WSGIApplication",
    "check_functions",
    "check_numbers",
    "check_places",
    "check_switches",
    "check_texts",
    "limits_of",
    "priorities_of",
]
