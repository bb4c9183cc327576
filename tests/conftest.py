"""What all tests share: a missing library skips its tests, but not where all were promised (``CI=true``)."""

import contextlib
import importlib
import itertools
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Never

import pytest

with warnings.catch_warnings():
    # What these import warns, at the first import only: so "pytest -W error" can still be typed.
    warnings.simplefilter("ignore")
    for _name in ("webob", "paste.deploy", "pyramid.config", "plaster_pastedeploy"):
        with contextlib.suppress(ImportError):
            importlib.import_module(_name)


pytest.register_assert_rewrite("bgmiddleware.testing", "tests.kit", "tests.registries")

# The tests start hundreds of Pythons: each compiles what it imports where none of them may keep it.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

PROMISED = os.environ.get("CI") == "true"

_MEMORY = Path("/dev/shm")  # a file system that Linux keeps in memory
_ENOUGH = 4 << 30


def _write_to_memory() -> Path | None:
    """Let temporary files lie in memory where there is room: the spool's tests wait for a disk half of their time.

    ``TMPDIR`` names another place. Processes of xdist take the place from the first process.
    """
    if "TMPDIR" in os.environ or not _MEMORY.is_dir() or not os.access(_MEMORY, os.W_OK):
        return None
    system = os.statvfs(_MEMORY)
    if system.f_bavail * system.f_frsize < _ENOUGH or system.f_flag & os.ST_NOEXEC:  # some tests build programs
        return None
    place = Path(tempfile.mkdtemp(prefix="bgmiddleware-tests-", dir=_MEMORY))
    place.chmod(0o1777)  # Apache and others who give up root's rights write there too
    os.environ["TMPDIR"] = tempfile.tempdir = str(place)
    return place


_in_memory = _write_to_memory()

# A test that uses one of these needs another program or process, so a short run leaves it out.
_OUTSIDE = {"browser", "child", "cluster", "rabbitmq_server", "redis_server", "redis_server_of_module", "valkey"}
_OUTSIDE |= {"serve", "started"}  # by a command


def needs(name: str) -> ModuleType:
    """Return the module *name*; without it skip the calling test or module, or fail where it was promised."""
    try:
        return importlib.import_module(name)
    except ImportError:
        if PROMISED:
            raise
        pytest.skip(f"needs {name}", allow_module_level=True)


def missing(what: str) -> Never:
    """Skip the test for want of a program, or fail where it was promised."""
    assert not PROMISED, f"CI=true promises {what}"
    pytest.skip(f"needs {what}")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from tests.kit.browsing import chromium  # which imports this module

    with chromium() as browser:
        yield browser


@pytest.fixture(autouse=True)
def _without_grace(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no start look for an early answer: that depends on how fast the machine is, and takes a fifth of a second of
    a job that says nothing.

    Tests of early answers are ``patient``. A short wait would not do for the others: the app may have answered before
    the look, also where nobody waits.
    """
    if "patient" not in request.fixturenames:
        monkeypatch.setattr("bgmiddleware._starting.early._a_moment", lambda visit, job, run: job)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let clients wait for an early answer for as long as it takes on a busy machine."""
    for name in ("_GRACE", "_QUEUED", "_LINGER"):
        monkeypatch.setattr(f"bgmiddleware._starting.early.{name}", 120.0)


@pytest.fixture(autouse=True)
def _without_housekeeping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no thread evict by time: a test says when, unless it is of ``housekeeping``."""
    base = importlib.import_module("bgmiddleware.registries.base")
    monkeypatch.setattr(base, "house", _NoHouse)


class _NoHouse:
    def take(self, registry: Any, seconds: float) -> None:
        pass

    def leave(self, registry: Any) -> None:
        pass


@pytest.fixture
def housekeeping(_without_housekeeping: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let it do so."""
    house = importlib.import_module("bgmiddleware.registries._housekeeping").house
    monkeypatch.setattr("bgmiddleware.registries.base.house", house)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--everything", action="store_true", help="also run tests that need servers, engines, browsers or real time"
    )
    parser.addoption(
        "--switch-interval", type=float, metavar="SECONDS", help="how often threads take turns, such as 1e-6"
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--switch-interval") is not None:
        sys.setswitchinterval(config.getoption("--switch-interval"))
    text = "everything: runs only with --everything, since it needs a server, an engine, a browser or real time"
    config.addinivalue_line("markers", text)
    config.stash[_LEFT_OUT] = 0


_LEFT_OUT = pytest.StashKey[int]()


@pytest.hookimpl(trylast=True)  # behind -k and -m: what these left out is no news
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out of a short run what needs more than Python, unless a test or a file is named."""
    if config.getoption("--everything") or _names_tests(config):
        return
    left_out = list(filter(_needs_more, items))
    config.stash[_LEFT_OUT] = len(left_out)
    config.hook.pytest_deselected(items=left_out)
    items[:] = itertools.filterfalse(_needs_more, items)


def _names_tests(config: pytest.Config) -> bool:
    """Whether the command names files or tests: then it means them."""
    return any(".py" in argument for argument in config.invocation_params.args if not argument.startswith("-"))


def _needs_more(item: pytest.Item) -> bool:
    return item.get_closest_marker("everything") is not None or bool(_OUTSIDE & set(getattr(item, "fixturenames", ())))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if config.stash[_LEFT_OUT]:
        terminalreporter.write_line(
            f"{config.stash[_LEFT_OUT]} tests that need servers, engines or browsers were left out: --everything"
        )


def pytest_xdist_auto_num_workers() -> int:
    """Return what ``-n auto`` means: one more than there are cores, since many tests wait for a disk or a process."""
    return len(os.sched_getaffinity(0)) + 1 if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1) + 1


def pytest_unconfigure() -> None:
    """Give the memory back."""
    if _in_memory is not None:
        shutil.rmtree(_in_memory, ignore_errors=True)


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Import all tests before they are collected, each worker beginning with others of them.

    pytest compiles a module with much care for its assertions, and keeps that. If all workers went through the modules
    in step, each would compile all of them the first time.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is None or session.config.args_source is not pytest.Config.ArgsSource.TESTPATHS:
        return
    here = Path(__file__).parent
    paths = sorted(here.rglob("test_*.py"))
    first = len(paths) * int(worker.removeprefix("gw")) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    for path in paths[first:] + paths[:first]:
        with contextlib.suppress(Exception, pytest.skip.Exception):  # the collection says so
            importlib.import_module(".".join(path.relative_to(here.parent).with_suffix("").parts))


def pytest_testnodedown(node: Any, error: object) -> None:
    """Take over from a process of xdist how many tests it left out; each leaves out the same."""
    node.config.stash[_LEFT_OUT] = getattr(node, "workeroutput", {}).get("left_out", 0)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail where somebody's ``importorskip`` skipped what was promised."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = session.config.stash[_LEFT_OUT]
    reporter: Any = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if PROMISED and reporter is not None else []
    missing = [report for report in skipped if "could not import" in str(report.longrepr)]
    if missing and session.exitstatus == pytest.ExitCode.OK:
        reporter.write_line(f"CI=true, and {len(missing)} skipped for want of a library", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
