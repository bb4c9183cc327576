"""Where jobs are kept: the contract in ``base``, and a registry by its URL."""

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
                return MemoryRegistry(**options)
            case "spool" if rest:
                from .spool import SpoolRegistry

                return SpoolRegistry(rest, **options)
            case "redis" | "rediss" | "unix" | "redis+sentinel" | "rediss+sentinel" if rest:
                from .redis import RedisRegistry

                return RedisRegistry(url, **options)
    except TypeError as error:
        raise ConfigurationError(f"registry = {kind}: {error}") from None
    raise ConfigurationError.of_setting("registry", kind if "@" in url else url, REGISTRY_URLS)
