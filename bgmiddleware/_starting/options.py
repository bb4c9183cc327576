"""Checks the middleware's options. Each check raises ``ConfigurationError``, which names the option."""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from .. import marks
from .._ground.numbers import check_count, is_finite, is_whole
from .._jobs import Priority
from ..errors import ConfigurationError
from ..executors.base import Executor
from ..registries.base import Registry

__all__ = [
    "Rules",
    "TracerProvider",
    "check_options",
    "check_places",
    "foreground_is_asked_for",
    "rules_of",
]

Limits = tuple[tuple[str, marks.Mark, int], ...]
Priorities = tuple[tuple[marks.Mark, Priority], ...]
Retries = tuple[tuple[marks.Mark, int], ...]

_log = logging.getLogger("bgmiddleware")

_FOREGROUND = "BGMIDDLEWARE_FOREGROUND"
_SWITCHES = {"1": True, "true": True, "yes": True, "on": True, "": False, "0": False, "false": False, "no": False}
_SWITCHES["off"] = False
_SHORTEST_SECRET = 16
_MOST_RETRIES = 10
_IDEMPOTENT = ("GET", "PUT", "DELETE")  # RFC 9110 §9.2.2; the others of those start no jobs
_RETRIED = re.compile("(?:(GET|POST|PUT|PATCH|DELETE) )?([/*].*)")
_SHARED = 'SpoolRegistry("/var/lib/…") of bgmiddleware.registries.spool, RedisRegistry("redis://…") of ….redis'
_OUR_PARAMETERS = ("_view", "_offset", "_wait", "_every", "_action", "_version", "_with", "_ignore", "_follow")


def check_options(given: Mapping[str, Any]) -> None:
    """Check the arguments of the middleware, by their names."""

    def named(names: str) -> dict[str, Any]:
        return {name: given[name] for name in names.split()}

    check_numbers(**named("max_body stream_slots promote_after deadline"))
    check_functions(given["unnamed"], **named("app when owner authorize title"))
    check_texts(**named("token_name secret dashboard health metrics assets version"))
    check_switches(**named("single_flight capture_logging capture_children tee answers details"))
    check_switches(**named("refuse_cross_site foreground keep_requests"))
    check_tracing(given["tracing"])
    check_operators(**named("authorize dashboard metrics"))


def check_numbers(*, deadline: object, promote_after: object, stream_slots: object, **whole: object) -> None:
    """Check the numbers: all are from 0, and *deadline* is above 0. Infinity is refused: None or 0 means no limit."""
    if not (is_finite(promote_after) and promote_after >= 0):
        raise ConfigurationError.of_setting("promote_after", promote_after, "a number from 0")
    if deadline is not None and not (is_finite(deadline) and deadline > 0):
        raise ConfigurationError.of_setting("deadline", deadline, "a number above 0")
    if stream_slots is not None:
        whole["stream_slots"] = stream_slots
    for name, number in whole.items():
        check_count(name, number, 0)


def check_functions(unnamed: Sequence[object], *, app: object, when: object, **others: object) -> None:
    """Check what is called with an environ: *app*, *when*, and the others where there are any. None is *unnamed*: a
    reader of ``BackgroundMiddleware(app, f, g)`` would guess."""
    if unnamed:
        name = "when=" if callable(unnamed[0]) else "when=, registry=, executor= …"
        raise ConfigurationError(f"after app all arguments are named: write {name} before {unnamed[0]!r}")
    if not callable(app):
        raise ConfigurationError.of_setting("app", app, "a WSGI application")
    if not callable(when):
        globs = [when] if isinstance(when, str) else when if isinstance(when, list | tuple) else ["/reports/*"]
        raise ConfigurationError.of_setting("when", when, f"a mark: marks.path({', '.join(map(repr, globs))})")
    for name, function in others.items():
        if function is not None and not callable(function):
            raise ConfigurationError.of_setting(name, function, f"a function of the environ, {_EXAMPLES[name]}")


_EXAMPLES = {
    "owner": "such as owners.remote_user",
    "authorize": "such as lambda environ: environ.get('REMOTE_USER') == 'admin'",
    "title": "such as lambda environ: environ['PATH_INFO']",
}


def check_switches(**switches: object) -> None:
    """Check the switches, which must be bool: the text ``"no"`` would count as true."""
    for name, switch in switches.items():
        if not isinstance(switch, bool):
            raise ConfigurationError.of_setting(name, switch, "True or False")


class TracerProvider(Protocol):
    """What OpenTelemetry calls so."""

    def get_tracer(self, instrumenting_module_name: str, /) -> Any:
        """Return what makes spans."""


def check_tracing(tracing: object) -> None:
    """Check what makes spans."""
    if not isinstance(tracing, bool) and not callable(getattr(tracing, "get_tracer", None)):
        raise ConfigurationError.of_setting("tracing", tracing, "True, False, or a TracerProvider of OpenTelemetry")


def foreground_is_asked_for() -> bool:
    """Whether the environment asks for a process that starts no jobs, so that a debugger can be used."""
    value = os.environ.get(_FOREGROUND, "")
    if value.lower() not in _SWITCHES:
        raise ConfigurationError.of_setting(_FOREGROUND, value, "1 or 0, in the environment")
    if _SWITCHES[value.lower()]:
        _log.warning("%s is set: all requests run in the foreground, and none starts a job", _FOREGROUND)
    return _SWITCHES[value.lower()]


def check_operators(authorize: object, **paths: object) -> None:
    """Check that what is for operators has a function that says who they are, and that such a function has a use."""
    given = [name for name, path in paths.items() if path is not None]
    if given and authorize is None:
        remedy = "set authorize too, a function of the environ that says who may see the list"
        raise ConfigurationError(f"{given[0]} is set without authorize: {remedy}")
    if not given and authorize is not None:
        raise ConfigurationError(
            "authorize is set without dashboard: set dashboard too, the path of the list, such as '/jobs'"
        )


def check_places(registry: object, executor: object) -> None:
    """Check the registry and the executor: objects, not the names that an ini file has."""
    if not isinstance(registry, Registry):
        if isinstance(registry, str):  # a URL may contain a password
            registry = registry.partition(":")[0]
        raise ConfigurationError.of_setting("registry", registry, f"{_SHARED}, or MemoryRegistry()")
    if not isinstance(executor, Executor):
        raise ConfigurationError.of_setting("executor", executor, "an executor, such as ThreadExecutor(max_workers=8)")
    if not executor.in_process and not registry.shared:
        raise ConfigurationError(
            f"registry: a {type(executor).__name__} runs jobs in other processes, which cannot see the jobs of a"
            f" {type(registry).__name__}: expected {_SHARED}"
        )


def check_texts(*, token_name: object, secret: object, assets: object, version: object, **paths: object) -> None:
    """Check the texts."""
    if not (isinstance(token_name, str) and re.fullmatch(r"[A-Za-z0-9_.~-]+", token_name)):
        raise ConfigurationError.of_setting("token_name", token_name, "letters, digits and -._~")
    if token_name in _OUR_PARAMETERS:
        raise ConfigurationError.of_setting("token_name", token_name, f"another name than {', '.join(_OUR_PARAMETERS)}")
    if secret is not None and not (isinstance(secret, str) and len(secret) >= _SHORTEST_SECRET):
        raise ConfigurationError.of_setting("secret", "…", f"a text of at least {_SHORTEST_SECRET} characters")
    for name, path in paths.items():
        if path is not None and not (isinstance(path, str) and path.startswith("/")):
            raise ConfigurationError.of_setting(name, path, "a path that begins with '/'")
    if assets not in ("inline", "external"):
        raise ConfigurationError.of_setting("assets", assets, "inline or external")
    if not isinstance(version, str):
        raise ConfigurationError.of_setting("version", version, "a text")


class Rules(NamedTuple):
    """What holds for the jobs of some paths. Of priorities and retries, the first mark that is true counts."""

    limit_per_owner: int | None
    limits: Limits
    """The name of each limit, its mark, and how many of the marked jobs may run at a time."""
    priorities: Priorities
    retries: Retries
    """Each mark with how often what it marks is tried again at most."""


def rules_of(limit_per_owner: int | None, limits: object, priorities: object, retries: object) -> Rules:
    """Return the rules that the options of the middleware say."""
    return Rules(limit_per_owner, _limits_of(limit_per_owner, limits), _priorities_of(priorities), _retries_of(retries))


def _limits_of(per_owner: object, per_mark: object) -> Limits:
    """Return for each limit its name, its mark, and how many of the marked jobs may run at a time."""
    if per_owner is not None:
        check_count("limit_per_owner", per_owner, 1)
    per_mark = {} if per_mark is None else per_mark
    if not isinstance(per_mark, Mapping) or not all(
        isinstance(glob, str) and is_whole(most, 1) for glob, most in per_mark.items()
    ):
        raise ConfigurationError.of_setting("limit_per_mark", per_mark, "for each glob a whole number from 1")
    return tuple((glob, marks.under(glob), most) for glob, most in per_mark.items())


def _priorities_of(per_mark: object) -> Priorities:
    """Return each mark with the priority of the jobs that it marks."""
    per_mark = {} if per_mark is None else per_mark
    words = [priority.value for priority in Priority]
    if not isinstance(per_mark, Mapping) or not all(
        isinstance(glob, str) and word in words for glob, word in per_mark.items()
    ):
        raise ConfigurationError.of_setting("priority_per_mark", per_mark, f"for each glob one of {', '.join(words)}")
    return tuple((marks.under(glob), Priority(word)) for glob, word in per_mark.items())


def _retries_of(per_mark: object) -> Retries:
    """Return each mark with how often what it marks is retried. Without a method it marks those that are idempotent."""
    per_mark = {} if per_mark is None else per_mark
    allowed = f"for each glob, or method and glob as 'POST /reports/*', a whole number from 1 to {_MOST_RETRIES}"
    found = []
    for name, most in per_mark.items() if isinstance(per_mark, Mapping) else [(None, None)]:
        said = _RETRIED.fullmatch(name) if isinstance(name, str) else None
        if said is None or not is_whole(most, 1) or most > _MOST_RETRIES:
            raise ConfigurationError.of_setting("retries_per_mark", per_mark, allowed)
        found.append((_sent_by((said[1],) if said[1] else _IDEMPOTENT, marks.under(said[2])), most))
    return tuple(found)


def _sent_by(methods: Sequence[str], mark: marks.Mark) -> marks.Mark:
    return lambda environ: environ["REQUEST_METHOD"] in methods and mark(environ)
