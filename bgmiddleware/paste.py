"""PasteDeploy: the strings of an ini file become typed arguments, here and nowhere else."""

import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any

from . import marks, owners, redact
from ._ground.loading import loaded
from ._middleware import BackgroundMiddleware, WSGIApplication
from .errors import ConfigurationError
from .executors import EXECUTORS, open_executor
from .executors.base import Executor
from .registries import REGISTRY_URLS, open_registry

__all__ = ["SETTINGS", "filter_app_factory"]


def _number(text: str) -> float:
    return float(text)


def _integer(text: str) -> int:
    return int(text)


_UNITS = {"k": 1024, "m": 1024**2, "g": 1024**3}


def _size(text: str) -> int:
    unit = _UNITS.get(text[-1:].lower(), 0)
    return int(text[:-1]) * unit if unit else int(text)


def _boolean(text: str) -> bool:
    return {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}[
        text.lower()
    ]


def _globs(text: str) -> list[str]:
    globs = text.split()
    if not all(glob.startswith(("/", "*")) for glob in globs):
        raise ValueError(text)
    return globs


def _limits(text: str) -> dict[str, int]:
    return {glob: int(number) for glob, number in _per_mark(text).items()}


def _per_mark(text: str) -> dict[str, str]:
    said: dict[str, str] = {}
    for word in text.split():
        glob, _, what = word.rpartition("=")
        (name,) = _globs(glob)
        _add(said, name, what)
    return said


def _add(said: dict[str, Any], name: str, value: object) -> None:
    if name in said:  # one of the two would be ignored
        raise ValueError(name)
    said[name] = value


_RETRIES = re.compile(r"((?:[A-Z]+\s+)?[/*]\S*)=([0-9]+)(?:\s+|$)")


def _retries(text: str) -> dict[str, int]:
    said: dict[str, int] = {}
    rest = text
    while rest:
        found = _RETRIES.match(rest)
        if found is None:
            raise ValueError(text)
        _add(said, " ".join(found[1].split()), int(found[2]))
        rest = rest[found.end() :]
    return said


def _mark(text: str) -> marks.Mark:
    kind, _, rest = text.partition(":")
    match kind:
        case "prefers_async" if not rest:
            return marks.prefers_async
        case "always" if not rest:
            return marks.always
        case "never" if not rest:
            return marks.never
        case "navigation" if not rest:
            return marks.navigation
        case "path" if rest:
            return marks.path(*_globs(rest))
        case "path+parts" if rest:
            return marks.path(*_globs(rest), parts=True)
        case "query" if rest:
            return marks.query(rest)
        case "header" if rest:
            name, equals, value = rest.partition("=")
            return marks.header(name, value if equals else None)
    return _imported("when", text)


def _owner(text: str) -> owners.Owner:
    kind, _, rest = text.partition(":")
    match kind:
        case "remote_user" if not rest:
            return owners.remote_user
        case "header" if rest:
            return owners.header(rest)
        case "cookie" if rest:
            secret, _, name = rest.partition(" name=")
            return owners.cookie(secret.rstrip(), name=name.strip() if name else None)
    return _imported("owner", text)


def _authorize(text: str) -> Callable[[Mapping[str, Any]], Any]:
    return _imported("authorize", text)


def _title(text: str) -> Callable[[Mapping[str, Any]], str]:
    return _imported("title", text)


def _redact(text: str) -> list[Any]:
    """Return the rules that are listed: what ``python:MODULE:NAME`` names is a list of them, or one."""
    rules: list[Any] = []
    for word in text.split():
        kind, _, rest = word.partition(":")
        match kind:
            case "common" if not rest:
                rules.append(redact.common())
            case "environment" if rest:
                rules.append(redact.environment(rest))
            case _:
                named = _named("redact", word)
                rules += named if isinstance(named, list | tuple) else [named]
    return rules


def _on_end(text: str) -> list[Any]:
    """Return the hooks that are listed: what ``python:MODULE:NAME`` names is one of them, or a list."""
    hooks: list[Any] = []
    for word in text.split():
        named = _named("on_end", word)
        hooks += named if isinstance(named, list | tuple) else [named]
    return hooks


def _page(text: str) -> Any:
    return _named("page", text)  # whether it can be one, the middleware says


def _imported(setting: str, text: str) -> Callable[[Mapping[str, Any]], Any]:
    """Return the function of the environ that ``python:MODULE:NAME`` names."""
    function: Callable[[Mapping[str, Any]], Any] = _named(setting, text)
    if not callable(function):
        raise ConfigurationError.of_setting(setting, text, "a function of the environ")
    return function


def _named(setting: str, text: str) -> Any:
    """Return what ``python:MODULE:NAME`` names."""
    kind, _, name = text.partition(":")
    if kind != "python":
        raise ValueError(text)
    return loaded(setting, name, "python:MODULE:NAME")


def _marks(text: str) -> list[marks.Mark]:
    """Return the marks that are listed; ``and`` makes one of those beside it."""
    found: list[list[marks.Mark]] = []
    joins = False
    for word in text.split():
        if word == "and":
            if joins or not found:
                raise ValueError(text)
            joins = True
        elif joins:
            found[-1].append(_mark(word))
            joins = False
        else:
            found.append([_mark(word)])
    if joins:
        raise ValueError(text)
    return [marks.all_of(*together) for together in found]


# For each setting how its text is read, what it may be, and which of the three it belongs to.
SETTINGS: Mapping[str, tuple[Callable[[str], Any], str, str]] = {
    "paths": (_globs, "globs that begin with '/' or '*', with spaces between", "marks"),
    "when": (
        _marks,
        "prefers_async, always, never, navigation, path:GLOB, path+parts:GLOB, query:NAME, header:NAME[=VALUE],"
        " python:MODULE:NAME, with spaces or 'and' between",
        "marks",
    ),
    "promote_after": (_number, "seconds", "middleware"),
    "registry": (str, REGISTRY_URLS, "kind"),
    "executor": (str, EXECUTORS, "kind"),
    "ttl": (_number, "seconds", "registry"),
    "pending_ttl": (_number, "seconds", "registry"),
    "max_jobs": (_integer, "a whole number", "registry"),
    "max_output": (_size, "bytes, also as 64k, 16M, 1G", "registry"),
    "max_result": (_size, "bytes, also as 64k, 16M, 1G", "registry"),
    "max_kept": (_integer, "a whole number", "registry"),
    "max_kept_bytes": (_size, "bytes, also as 64k, 16M, 1G", "registry"),
    "max_bytes": (_size, "bytes, also as 64k, 16M, 1G", "registry"),
    "spool_threshold": (_size, "bytes, also as 64k, 16M, 1G", "registry"),
    "busy_timeout": (_number, "seconds", "registry"),
    "prefix": (str, "1 to 100 letters, digits and .:/_-", "registry"),
    "timeout": (_number, "seconds", "registry"),
    "max_waiting": (_integer, "a whole number", "registry"),
    "max_workers": (_integer, "a whole number", "executor"),
    "max_pending": (_integer, "a whole number", "executor"),
    "drain": (_number, "seconds", "executor"),
    "app": (str, "MODULE:APP, FILE.ini, FILE.ini#NAME", "executor"),
    "max_jobs_per_child": (_integer, "a whole number", "executor"),
    "max_memory": (_size, "bytes, also as 64k, 16M, 1G", "executor"),
    "grace": (_number, "seconds", "executor"),
    "queue": (str, "a text", "executor"),
    "owner": (
        _owner,
        "remote_user, header:NAME, cookie:SECRET, cookie:SECRET name=NAME, python:MODULE:NAME",
        "middleware",
    ),
    "single_flight": (_boolean, "true or false", "middleware"),
    "max_body": (_size, "bytes, also as 64k, 16M, 1G", "middleware"),
    "stream_slots": (_integer, "a whole number", "middleware"),
    "dashboard": (str, "a path that begins with '/'", "middleware"),
    "authorize": (_authorize, "python:MODULE:NAME", "middleware"),
    "health": (str, "a path that begins with '/'", "middleware"),
    "metrics": (str, "a path that begins with '/'", "middleware"),
    "tracing": (_boolean, "true or false", "middleware"),
    "title": (_title, "python:MODULE:NAME", "middleware"),
    "redact": (_redact, "common, environment:GLOB, python:MODULE:NAME, with spaces between", "middleware"),
    "on_end": (_on_end, "python:MODULE:NAME, with spaces between", "middleware"),
    "deadline": (_number, "seconds", "middleware"),
    "limit_per_owner": (_integer, "a whole number", "middleware"),
    "limit_per_mark": (_limits, "GLOB=NUMBER, with spaces between, each GLOB once", "middleware"),
    "priority_per_mark": (
        _per_mark,
        "GLOB=high, GLOB=normal or GLOB=low, with spaces between, each GLOB once",
        "middleware",
    ),
    "retries_per_mark": (
        _retries,
        "GLOB=NUMBER or METHOD GLOB=NUMBER, with spaces between, each GLOB once",
        "middleware",
    ),
    "version": (str, "a text", "middleware"),
    "secret": (str, "at least 16 characters", "middleware"),
    "page": (_page, "python:MODULE:NAME", "middleware"),
    "assets": (str, "inline or external", "middleware"),
    "capture_logging": (_boolean, "true or false", "middleware"),
    "capture_children": (_boolean, "true or false", "middleware"),
    "tee": (_boolean, "true or false", "middleware"),
    "keep_requests": (_boolean, "true or false", "middleware"),
    "answers": (_boolean, "true or false", "middleware"),
    "details": (_boolean, "true or false", "middleware"),
    "refuse_cross_site": (_boolean, "true or false", "middleware"),
    "foreground": (_boolean, "true or false", "middleware"),
    "token_name": (str, "letters, digits and -._~", "middleware"),
}


def filter_app_factory(
    app: WSGIApplication, global_conf: Mapping[str, str] | None, /, **settings: str
) -> BackgroundMiddleware:
    """Wrap *app* as the section of an ini file says: ``use = egg:bgmiddleware``.

    Of *global_conf* only the name of the file is used: what others put into ``[DEFAULT]`` is not meant for us. Raises
    ``ConfigurationError`` for a setting that is unknown or has a value that it cannot have, by name.
    """
    arguments: dict[str, dict[str, Any]] = {"marks": {}, "kind": {}, "registry": {}, "executor": {}, "middleware": {}}
    for name, text in settings.items():
        if name not in SETTINGS:
            raise ConfigurationError(f"unknown setting {name!r}: {_meant(name)}")
        read, allowed, group = SETTINGS[name]
        try:
            arguments[group][name] = read(text.strip())
        except ConfigurationError:
            raise
        except (ValueError, KeyError, OverflowError):
            raise ConfigurationError.of_setting(name, text, allowed) from None
    registry = open_registry(arguments["kind"].get("registry", "memory:"), **arguments["registry"])
    registry.check()
    return BackgroundMiddleware(
        app,
        when=_when(**arguments["marks"]),
        registry=registry,
        executor=_executor(arguments["kind"].get("executor", "thread"), arguments["executor"], global_conf or {}),
        **arguments["middleware"],
    )


def _meant(name: str) -> str:
    close = difflib.get_close_matches(name, SETTINGS, n=1)
    if close:
        return f"did you mean {close[0]}?"
    return "expected one of the keys in docs/reference/settings.rst, such as paths, when, registry, executor, ttl"


def _when(paths: list[str] | None = None, when: list[marks.Mark] | None = None) -> marks.Mark:
    """Combine both settings; without any of them, what the middleware does by itself."""
    chosen = list(when or ())
    if paths:
        chosen.append(marks.path(*paths))
    return marks.any_of(*chosen) if chosen else marks.prefers_async


def _executor(name: str, options: dict[str, Any], global_conf: Mapping[str, str]) -> Executor:
    if name == "process" and "__file__" in global_conf:
        options.setdefault("app", global_conf["__file__"])  # the children load what is loaded here
    return open_executor(name, **options)
