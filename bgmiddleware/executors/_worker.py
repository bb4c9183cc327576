"""Stand-in until the branch process brings the real one."""

import time
from collections.abc import Callable
from typing import Any, Protocol

from .._runner import Run
from ..errors import ConfigurationError, JobExpired, JobNotFound
from .._loading import loaded
from ..registries.base import Registry


class Site(Protocol):
    registry: Registry
    executor: Any

    def stored_run(self, key: str, cpu_clock: Callable[[], float]) -> Run: ...


def run_stored(site: Site, key: str) -> bool:
    try:
        return site.stored_run(key, time.process_time)()
    except (JobNotFound, JobExpired):
        return False


def load_site(name: str) -> Site:
    app = loaded("app", name)
    while not hasattr(app, "stored_run"):
        for inner in ("app", "wsgi_app", "application"):
            if hasattr(app, inner):
                app = getattr(app, inner)
                break
        else:
            raise ConfigurationError("no middleware")
    return app
