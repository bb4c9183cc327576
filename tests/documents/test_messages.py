"""Every complaint about the configuration says what is wrong, where, and what to write instead."""

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bgmiddleware import BackgroundMiddleware, ConfigurationError, MemoryRegistry, background, marks, owners
from bgmiddleware._commands.jobs import run_jobs_command
from bgmiddleware.executors import open_executor
from bgmiddleware.executors.process import ProcessExecutor
from bgmiddleware.paste import filter_app_factory
from bgmiddleware.registries import open_registry
from tests.documents.test_architecture import trees
from tests.kit.clients import environ

# What a message has that says what to write instead.
REMEDY = re.compile(
    r"\b(expected|did you mean|write|name|make|give|leave|set|check|wrap|mark|decorate|delete|upgrade|take|chmod"
    r"|pip install|such as|needs at least one)\b",
    re.IGNORECASE,
)
PASSED_ON = {
    "f'executor = {word}: {error}'",
    "f'registry = {kind}: {error}'",
    "f'celery worker: {error.format_message()}'",
    "f'{setting} = {name!r}: {error}'",
}
"""Sentences of others, which say what is wrong with what the setting names."""


def complaints() -> Iterator[tuple[str, ast.expr]]:
    """Yield all messages of our code that are not of ``of_setting``, which always says what is expected."""
    for module, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("ConfigurationError", "self._refused"):
                yield module, node.args[0]


def texts(tree: ast.AST, message: ast.expr) -> Iterator[str]:
    """Yield the literal text of a message, and of what is put into it by a name or a call."""
    for node in ast.walk(message):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        name = getattr(node, "id", None) or (node.attr if isinstance(node, ast.Attribute) else None)
        for other in ast.walk(tree):
            if isinstance(other, ast.Assign | ast.AugAssign) and name is not None:
                targets = other.targets if isinstance(other, ast.Assign) else [other.target]
                if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                    yield ast.unparse(other.value)
            if isinstance(other, ast.FunctionDef) and other.name == name:
                yield ast.unparse(other)


def test_each_complaint_says_what_to_write_instead() -> None:
    found = [(module, message) for module, message in complaints() if ast.unparse(message) not in PASSED_ON]
    assert len(found) > 30
    for module, message in found:
        said = " ".join(texts(trees()[module], message))
        assert REMEDY.search(said), f"{module}:{message.lineno}: {said}"


def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    return []


def middleware(*unnamed: Any, **options: Any) -> Callable[[], object]:
    return lambda: BackgroundMiddleware(app, *unnamed, **options)


def ini(**settings: str) -> Callable[[], object]:
    return lambda: filter_app_factory(app, {}, **settings)


async def coroutine() -> None: ...


SAID: dict[str, tuple[Callable[[], object], str]] = {
    "a glob for a mark": (
        middleware(when="/reports/*"),
        "when = '/reports/*': expected a mark: marks.path('/reports/*')",
    ),
    "globs for a mark": (
        middleware(when=["/a", "/b/*"]),
        "when = ['/a', '/b/*']: expected a mark: marks.path('/a', '/b/*')",
    ),
    "no mark": (middleware(when=None), "when = None: expected a mark: marks.path('/reports/*')"),
    "a mark without its name": (
        middleware(marks.always),
        f"after app all arguments are named: write when= before {marks.always!r}",
    ),
    "an owner that is a name": (
        middleware(owner="alice"),
        "owner = 'alice': expected a function of the environ, such as owners.remote_user",
    ),
    "a registry that is a URL": (
        middleware(registry="redis://:secret@host"),
        "registry = 'redis': expected SpoolRegistry(\"/var/lib/…\") of bgmiddleware.registries.spool,"
        ' RedisRegistry("redis://…") of ….redis, or MemoryRegistry()',
    ),
    "jobs in other processes, kept in this one": (
        lambda: BackgroundMiddleware(app, executor=ProcessExecutor("shop:app")),
        "registry: a ProcessExecutor runs jobs in other processes, which cannot see the jobs of a MemoryRegistry:"
        ' expected SpoolRegistry("/var/lib/…") of bgmiddleware.registries.spool, RedisRegistry("redis://…") of ….redis',
    ),
    "a dashboard for everybody": (
        middleware(dashboard="/jobs"),
        "dashboard is set without authorize: set authorize too, a function of the environ that says who may see the"
        " list",
    ),
    "no path of the dashboard": (
        middleware(authorize=marks.never),
        "authorize is set without dashboard: set dashboard too, the path of the list, such as '/jobs'",
    ),
    "a text for a number": (lambda: MemoryRegistry(ttl="600"), "ttl = '600': expected a number above 0"),  # type: ignore[arg-type]
    "a text for bytes": (lambda: MemoryRegistry(max_bytes="1G"), "max_bytes = '1G': expected a number above 0"),  # type: ignore[arg-type]
    "a key of an ini file with a slip": (ini(path="/x"), "unknown setting 'path': did you mean paths?"),
    "a key of an ini file that is none": (
        ini(qwertz="1"),
        "unknown setting 'qwertz': expected one of the keys in docs/reference/settings.rst, such as paths, when,"
        " registry, executor, ttl",
    ),
    "a setting of another registry": (
        lambda: open_registry("spool:/x", spool_threshold=1),
        "spool_threshold = 1: registry = spool has no such setting. Leave it out; expected one of ttl, pending_ttl,"
        " max_jobs, max_output, max_result, max_kept, max_kept_bytes, max_bytes, busy_timeout, clock",
    ),
    "a setting of another executor": (
        lambda: open_executor("thread", grace=1.0),
        "grace = 1.0: executor = thread has no such setting. Leave it out; expected one of max_workers, max_pending,"
        " drain",
    ),
    "a registry of no known kind": (
        lambda: open_registry("mongodb://localhost"),
        "registry = 'mongodb://localhost': expected memory:, spool:DIRECTORY, redis://HOST:PORT/DB, rediss://…,"
        " unix://…, redis+sentinel://HOST:PORT,…/SERVICE",
    ),
    "a coroutine function": (
        lambda: background(coroutine),
        "@background cannot decorate the coroutine function coroutine: mark its URL, when=marks.path(…), instead",
    ),
    "a short secret": (
        lambda: owners.cookie("short"),
        "owners.cookie: expected a secret text of at least 16 characters, such as secrets.token_hex(32) makes",
    ),
}


@pytest.mark.parametrize("complaint", SAID)
def test_what_people_meet_first_is_said_plainly(complaint: str) -> None:
    provoke, said = SAID[complaint]
    with pytest.raises(ConfigurationError) as caught:
        provoke()
    assert str(caught.value) == said


def test_a_server_of_several_processes_is_told_which_registries_there_are() -> None:
    heads: list[str] = []
    with BackgroundMiddleware(app, when=marks.always) as site:
        request = {**environ("GET", "/", accept="application/json"), "wsgi.multiprocess": True}
        body = b"".join(site(request, lambda status, headers, exc_info=None: heads.append(status)))
    assert heads == ["500 Internal Server Error"]
    for word in (b"SpoolRegistry(", b"RedisRegistry(", b"bgmiddleware.registries.spool", b"MemoryRegistry"):
        assert word in body


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("memory:", "only the server's process can read its memory: expected the shared registry that the server uses"),
        ("spool:{0}/typo", "no server has stored jobs there. Check the name; a relative directory is one in "),
    ],
)
def test_jobs_of_a_registry_that_is_not_there(
    url: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from bgmiddleware.__main__ import _parser

    url = url.format(tmp_path)
    assert run_jobs_command(_parser().parse_args(["jobs", "list", "--registry", url])) == 2
    assert f"bgmiddleware: registry = {url!r}: {said}" in capsys.readouterr().err
