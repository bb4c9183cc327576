"""The house as it is meant: who may import whom, what is public, and that importing does nothing."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import bgmiddleware
from tests.kit.documents import ROOT

PACKAGE = ROOT / "bgmiddleware"

# From the ground up: a module may import those of its own line and of the lines above it. What is not named here is
# named by its package.
LAYERS = (
    ("client", "errors", "_ground"),
    ("_jobs", "_capture"),
    ("_frameworks",),
    ("registries",),
    ("_running",),
    ("executors",),
    ("hooks", "marks", "owners", "redact", "_context"),
    ("_serving",),
    ("_starting", "metrics", "tracing"),
    ("_middleware",),
    ("paste", "_server", "_commands", "__init__", "testing"),
    ("__main__",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

# What is not of the standard library, and who may use it.
FOREIGN = {
    "webob": {"_ground"},
    "waitress": {"_server"},
    "redis": {"registries", "executors"},
    "prometheus_client": {"metrics"},
    "opentelemetry": {"tracing", "_frameworks"},
    "pytest": {"testing"},
    "flask_login": {"owners"},
    **{name: {"executors"} for name in ("celery", "click", "kombu", "rq")},
    # Where an app has imported them already.
    **{
        name: {"_frameworks", "owners", "testing"} if name == "django" else {"_frameworks"}
        for name in (
            "bottle",
            "cherrypy",
            "django",
            "flask",
            "pyramid",
            "sqlalchemy",
            "web",
            "werkzeug",
        )
    },
}

MAX_LINES = 600
MAX_FUNCTION_LINES = 80


def name_of(path: Path) -> str:
    """Return the dotted name of a module inside the package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def trees() -> dict[str, ast.Module]:
    """Return each module as it is parsed: not at import, which each process of xdist would wait for."""
    return {name: ast.parse(path.read_text(), str(path)) for name, path in MODULES.items()}


def imports(module: str) -> Iterator[str]:
    """Yield what *module* imports, inside of functions too: a module of ours as ``.name``, any other by its name."""
    is_package = MODULES[module].name == "__init__.py"
    parts = [] if module == "__init__" else module.split(".")
    home = parts if is_package else parts[:-1]
    for node in ast.walk(trees()[module]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module or ""
        elif isinstance(node, ast.ImportFrom):
            base = [*home[: len(home) - node.level + 1], *((node.module or "").split(".") if node.module else [])]
            for alias in node.names:
                inner = ".".join([*base, alias.name])
                yield "." + (inner if inner in MODULES else ".".join(base) or "__init__")


@cache
def all_imports() -> list[tuple[str, str]]:
    """Return each module with each that it imports."""
    return [(module, imported) for module in MODULES for imported in imports(module)]


def level_of(module: str) -> int:
    return LEVEL[module.partition(".")[0]]


def test_imports_go_in_one_direction() -> None:
    upward = [
        f"{module} imports {imported}"
        for module, imported in all_imports()
        if imported.startswith(".") and level_of(imported[1:]) > level_of(module)
    ]
    assert upward == []


def test_only_what_is_allowed_is_imported_from_elsewhere() -> None:
    foreign = [
        f"{module} imports {imported}"
        for module, imported in all_imports()
        if not imported.startswith(".")
        and (root := imported.partition(".")[0]) not in sys.stdlib_module_names
        and module.partition(".")[0] not in FOREIGN.get(root, ())
    ]
    assert foreign == []


def test_nothing_imports_the_package_by_its_name() -> None:
    by_name = [
        f"{module} imports {imported}"
        for module, imported in all_imports()
        if imported.partition(".")[0] == "bgmiddleware" or imported == ".__init__"
    ]
    assert by_name == []


def test_imports_make_no_circle() -> None:
    """Those inside of functions count: a circle that they cut is one nevertheless, also within a room."""
    ways: dict[str, set[str]] = {module: set() for module in MODULES}
    for module, imported in all_imports():
        if imported.startswith("."):
            ways[module].add(imported[1:])
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " → ".join((*way, module))
        if module not in done:
            for imported in sorted(ways[module] - {module}):
                visit(imported, (*way, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


def test_what_a_module_exports_is_sorted_and_there() -> None:
    for module in set(MODULES) - {"__main__"}:  # importing it is fine, its name is not a module's
        path = "bgmiddleware" if module == "__init__" else f"bgmiddleware.{module}"
        imported = importlib.import_module(path)
        exported = getattr(imported, "__all__", [])
        assert exported == sorted(exported, key=_as_ruff_sorts), module
        assert len(exported) == len(set(exported)), module
        assert [name for name in exported if not hasattr(imported, name)] == [], module


def _as_ruff_sorts(name: str) -> tuple[int, str]:
    """CONSTANTS, then Classes, then functions."""
    return (0 if name.isupper() and len(name) > 1 else 1 if name[0].isupper() else 2), name


def test_what_is_public_is_exported() -> None:
    modules = {module.name for module in pkgutil.iter_modules(bgmiddleware.__path__)}
    public = {name for name in vars(bgmiddleware) if not name.startswith("_")}
    assert public - modules <= set(bgmiddleware.__all__)
    # What users import by its path is not private by accident.
    assert {name for name in modules if not name.startswith("_")} <= {
        *("client", "errors", "executors", "hooks", "marks", "metrics", "owners", "paste", "redact", "registries"),
        *("testing", "tracing"),
    }


def test_what_stands_at_the_top_can_be_seen_at_a_glance() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 14


WATCH = """
import logging, socket, subprocess, sys, threading
streams = sys.stdin, sys.stdout, sys.stderr
before = dict(vars(threading)), dict(vars(threading.Thread)), dict(vars(logging.Logger)), dict(vars(subprocess.Popen))
sockets = []
sys.addaudithook(lambda event, args: sockets.append(event) if event.startswith("socket.") else None)
import bgmiddleware, bgmiddleware.paste, bgmiddleware.__main__
app = bgmiddleware.BackgroundMiddleware(lambda environ, start_response: [])
assert streams == (sys.stdin, sys.stdout, sys.stderr)
assert before == (vars(threading), vars(threading.Thread), vars(logging.Logger), vars(subprocess.Popen))
assert threading.enumerate() == [threading.main_thread()]
assert sockets == [], sockets
"""


def test_importing_and_constructing_start_and_replace_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", WATCH], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_no_module_is_longer_than_one_can_read() -> None:
    lengths = {module: len(path.read_text().splitlines()) for module, path in MODULES.items()}
    del lengths["testing.registries"]  # a list of promises
    assert {module: length for module, length in lengths.items() if length > MAX_LINES} == {}


def test_no_function_is_longer_than_a_screen_or_two() -> None:
    long = [
        f"{module}: {node.name}"
        for module, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= MAX_FUNCTION_LINES
    ]
    assert long == []


def test_no_error_is_swallowed_whatever_it_is() -> None:
    swallowed = [
        f"{module}: line {node.lineno}"
        for module, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler) and _is_broad(node) and _is_silent(node)
    ]
    assert swallowed == []


def _is_broad(handler: ast.ExceptHandler) -> bool:
    caught = handler.type
    return caught is None or (isinstance(caught, ast.Name) and caught.id in ("Exception", "BaseException"))


def _is_silent(handler: ast.ExceptHandler) -> bool:
    return all(isinstance(statement, ast.Pass | ast.Continue) for statement in handler.body)


def test_the_mirror_of_lengths(capsys: pytest.CaptureFixture[str]) -> None:
    """Report, and judge not: ``pytest -rP -k mirror``. A module of more than 300 lines is usually two things."""
    lengths = {module: len(path.read_text().splitlines()) for module, path in MODULES.items()}
    functions = [
        (node.end_lineno or 0) - node.lineno + 1
        for tree in trees().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    ]
    print("modules over 300 lines:", {module: count for module, count in lengths.items() if count > 300})
    print("functions:", len(functions), "median:", sorted(functions)[len(functions) // 2])
    print("over 40 lines:", sum(count > 40 for count in functions))
    assert "functions:" in capsys.readouterr().out
