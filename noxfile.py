"""``nox``: the checks of .ci/run, each by itself, in environments of their own."""

import re

import nox

nox.options.sessions = ["lint", "types", "tests"]
nox.options.default_venv_backend = "uv|virtualenv"  # uv installs in a fraction of the time

EXTRAS = ["celery", "opentelemetry", "prometheus", "redis", "rq"]
"""Those that code of the package imports."""

ROOMS_OF_THREADS = ["tests/capture", "tests/running", "tests/registries", "tests/starting"]
FOR_THREADS = ["docutils>=0.21", "hypothesis>=6.100,<6.140", "loguru>=0.7", "pytest>=8", "pytest-xdist>=3.6"]
FOR_THREADS += ["redis>=5.0.1", "tqdm>=4.66", "WebTest>=3"]  # newer versions of hypothesis need Rust

TOUCHING_LIBRARIES = [
    "tests/again/test_on_engines.py",
    "tests/frameworks/test_frameworks.py",
    "tests/registries/test_redis_registry.py::TestRedisRegistry",
    "tests/serving/test_metrics.py",
    "tests/starting/test_http.py",
    "tests/starting/test_paste.py",
    "tests/starting/test_tracing.py",
]
FOR_LIBRARIES = ["docutils>=0.21", "gunicorn>=23", "hypothesis>=6.100", "pytest>=8", "pytest-xdist>=3.6", "WebTest>=3"]
FOR_LIBRARIES += ["opentelemetry-exporter-otlp-proto-http", "opentelemetry-instrumentation-wsgi"]


@nox.session(python=["3.11", "3.12", "3.13", "3.14"])
def tests(session: nox.Session) -> None:
    """Run the tests; arguments go to pytest."""
    session.install("-e", ".[test]")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session(python="3.11")
def devmode(session: nox.Session) -> None:
    """Run what threads share in Python's development mode, with threads that take turns each microsecond."""
    session.install("-e", ".[test]")
    command = ["python", "-m", "pytest", "--switch-interval", "1e-6", "-m", "not everything"]
    session.run(*command, *(session.posargs or ROOMS_OF_THREADS), env={"PYTHONDEVMODE": "1"})


@nox.session(python=["3.11", "3.12", "3.13", "3.14", "3.13t", "3.14t"])
def threads(session: nox.Session) -> None:
    """Run what threads share, with little installed; on a free-threaded build (``3.14t``) without the global lock."""
    session.install("-e", ".", *FOR_THREADS)
    environ = {"CI": ""}  # what is not installed is not promised
    if str(session.python).endswith("t"):
        environ["PYTHON_GIL"] = "0"
    command = ["python", "-m", "pytest", "-m", "not everything"]
    session.run(*command, *(session.posargs or ROOMS_OF_THREADS), env=environ)


@nox.session
def lowest(session: nox.Session) -> None:
    """Run what touches other libraries with the lowest versions of them that the package says it works with.

    But Celery over Redis: it asks for a newer redis-py than we do by ourselves.
    """
    extras = ["demo", *EXTRAS]
    session.install("-e", f".[{','.join(extras)}]", *_lowest_versions(extras), *FOR_LIBRARIES)
    session.run("python", "-m", "pytest", "-k", "not elery", *(session.posargs or TOUCHING_LIBRARIES))


def _lowest_versions(extras: list[str]) -> list[str]:
    """Return what the package and its *extras* require, each at its lowest version: ``redis==5.0.1``."""
    project = nox.project.load_toml("pyproject.toml")["project"]
    requirements = [*project["dependencies"]]
    for extra in extras:
        requirements += project["optional-dependencies"][extra]
    return [re.sub(",.*", "", requirement).replace(">=", "==") for requirement in requirements]


@nox.session
def lint(session: nox.Session) -> None:
    """Check how the code looks."""
    session.install("ruff>=0.9")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types."""
    session.install("-e", ".[test]")
    session.run("mypy")


@nox.session
def typed(session: nox.Session) -> None:
    """Check that all that is public has a known type, for those who use the package."""
    session.install(f".[{','.join(EXTRAS)}]", "pyright>=1.1.390")
    session.run("pyright", "--verifytypes", "bgmiddleware", "--ignoreexternal")


@nox.session
def benchmarks(session: nox.Session) -> None:
    """Print the figures and their budgets."""
    session.install("-e", ".", "playwright>=1.49", "Werkzeug>=3")
    session.run("python", "-m", "benchmarks.unmarked")
    session.run("python", "-m", "benchmarks.printing")
    session.run("python", "-m", "benchmarks.viewers")
    session.run("python", "-m", "benchmarks.terminal")
    session.run("python", "-m", "benchmarks.page")
