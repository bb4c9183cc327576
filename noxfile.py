"""``nox``: the checks of .ci/run, each by itself, in environments of their own."""

import nox

nox.options.sessions = ["lint", "types", "tests"]


@nox.session(python=["3.11", "3.12", "3.13"])
def tests(session: nox.Session) -> None:
    """Run the tests; arguments go to pytest."""
    session.install("-e", ".[test]")
    session.run("python", "-m", "pytest", *session.posargs)


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
def benchmarks(session: nox.Session) -> None:
    """Print the figures and their budgets."""
    session.install("-e", ".", "playwright>=1.49", "Werkzeug>=3")
    session.run("python", "-m", "benchmarks.unmarked")
    session.run("python", "-m", "benchmarks.printing")
    session.run("python", "-m", "benchmarks.viewers")
    session.run("python", "-m", "benchmarks.terminal")
    session.run("python", "-m", "benchmarks.page")
