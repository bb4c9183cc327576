"""Where jobs are kept: the contract in ``base``, and a registry by its URL."""

import inspect
from collections.abc import Mapping
from typing import Any

from ..errors import ConfigurationError
from .base import Registry
from .memory import MemoryRegistry

__all__ = ["REGISTRY_URLS", "open_registry"]

REGISTRY_URLS = (
    "memory:, spool:DIRECTORY, redis://HOST:PORT/DB, rediss://…, unix://…, redis+sentinel://HOST:PORT,…/SERVICE"
)


def open_registry(url: str, **options: Any) -> Registry:
    """Return the registry that *url* names, with *options* of its class. Opens nothing yet.

    Raises ``ConfigurationError`` for any other URL, for an option that it does not have, and where the library that it
    needs is not installed.
    """
    kind, _, rest = url.partition(":")
    try:
        match kind:
            case "memory" if not rest:
                _check_options(kind, MemoryRegistry, options)
                return MemoryRegistry(**options)
            case "spool" if rest:
                from .spool import SpoolRegistry

                _check_options(kind, SpoolRegistry, options)
                return SpoolRegistry(rest, **options)
            case "redis" | "rediss" | "unix" | "redis+sentinel" | "rediss+sentinel" if rest:
                from .redis import RedisRegistry

                _check_options(kind, RedisRegistry, options)
                return RedisRegistry(url, **options)
    except ImportError as error:
        raise ConfigurationError(f"registry = {kind}: {error}") from error
    raise ConfigurationError.of_setting("registry", kind if "@" in url else url, REGISTRY_URLS)


def _check_options(kind: str, registry: type[Registry], options: Mapping[str, Any]) -> None:
    known = [name for name, one in inspect.signature(registry).parameters.items() if one.kind is one.KEYWORD_ONLY]
    for name, value in options.items():
        if name not in known:
            raise ConfigurationError(
                f"{name} = {value!r}: registry = {kind} has no such setting. Leave it out; expected one of"
                f" {', '.join(known)}"
            )
