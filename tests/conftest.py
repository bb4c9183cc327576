"""What all tests share: a missing library skips its tests, but not where all were promised (``CI=true``)."""

import contextlib
import importlib
import os
import warnings
from types import ModuleType
from typing import Any

import pytest

with warnings.catch_warnings():
    # What these import warns, at the first import only: so "pytest -W error" can still be typed.
    warnings.simplefilter("ignore")
    for _name in ("webob", "paste.deploy", "pyramid.config", "plaster_pastedeploy"):
        with contextlib.suppress(ImportError):
            importlib.import_module(_name)


pytest.register_assert_rewrite("tests.executors.executor_contract", "tests.kit", "tests.registries")

PROMISED = os.environ.get("CI") == "true"


def needs(name: str) -> ModuleType:
    """Return the module *name*; without it skip the calling test or module, or fail where it was promised."""
    try:
        return importlib.import_module(name)
    except ImportError:
        if PROMISED:
            raise
        pytest.skip(f"needs {name}", allow_module_level=True)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail where somebody's ``importorskip`` skipped what was promised."""
    reporter: Any = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if PROMISED and reporter is not None else []
    missing = [report for report in skipped if "could not import" in str(report.longrepr)]
    if missing and session.exitstatus == pytest.ExitCode.OK:
        reporter.write_line(f"CI=true, and {len(missing)} skipped for want of a library", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
