"""Objects by their names: what a command line, an ini file and a worker process are told."""

import importlib
from typing import Any

from ..errors import ConfigurationError

__all__ = ["check_name", "loaded"]


def loaded(setting: str, name: str, allowed: str = "MODULE:NAME") -> Any:
    """Return the object that ``module:attribute`` names.

    Raises ``ConfigurationError``, which says *setting*, where it is not such a name or there is no such object. What
    else importing the module raises is the module's own error and comes as it is.
    """
    check_name(setting, name, allowed)
    module_name, _, attribute = name.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"{setting} = {name!r}: {error}") from error
    return found


def check_name(setting: str, name: str, allowed: str = "MODULE:NAME") -> None:
    """Raise ``ConfigurationError``, which says *setting*, where *name* is not ``module:attribute``. Imports nothing."""
    module_name, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), *attribute.split(".")]):
        raise ConfigurationError.of_setting(setting, name, allowed)
