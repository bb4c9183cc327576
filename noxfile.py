"""``nox``: the checks of .ci/run, each by itself, in environments of their own."""

import nox

nox.options.sessions = ["lint", "types", "tests"]


FREE_THREADED = ["docutils>=0.21", "hypothesis>=6.100,<6.140", "loguru>=0.7", "pytest>=8", "pytest-xdist>=3.6"]
FREE_THREADED += ["redis>=5", "tqdm>=4.66", "WebTest>=3"]  # newer versions of hypothesis need Rust
ROOMS_OF_THREADS = ["tests/capture", "tests/running", "tests/registries", "tests/starting"]


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


@nox.session(python=["3.13t", "3.14t"])
def free_threaded(session: nox.Session) -> None:
    """Run what threads share without the global interpreter lock; only with what installs on such a build."""
    session.install("-e", ".", *FREE_THREADED)
    command = ["python", "-m", "pytest", "-m", "not everything"]
    session.run(*command, *(session.posargs or ROOMS_OF_THREADS), env={"PYTHON_GIL": "0"})


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
    session.install(".[redis,rq,celery,prometheus,opentelemetry,paste]", "pyright")
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
