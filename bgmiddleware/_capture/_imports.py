"""Hook modules that the app may import, now or later, without importing them."""

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

__all__ = ["hook_modules"]


def hook_modules(hooks: Mapping[str, Callable[[Any], None]]) -> None:
    """Call each of *hooks*, which are named by modules, with its module: now if it is imported, else when it is.

    What a hook raises is dropped: then a library is otherwise inside than we know, and works as it does without us.
    """
    later = dict(hooks)
    sys.meta_path.insert(0, _Finder(later))
    for name in hooks:
        if name in sys.modules:
            # Another thread may be in the midst of it: that is waited for, and the finder was not asked.
            module = importlib.import_module(name)
            _call(later.pop(name, None), module)


def _call(hook: Callable[[Any], None] | None, module: ModuleType) -> None:
    if hook is not None:
        with contextlib.suppress(Exception):
            hook(module)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds nothing by itself: it has what the others find call a hook when it is executed."""

    def __init__(self, hooks: dict[str, Callable[[Any], None]]) -> None:
        self._hooks = hooks

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self._hooks:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None:
                break
        else:
            return None
        loader: Any = spec.loader
        if isinstance(loader, type) or not hasattr(loader, "exec_module"):  # of a built-in module
            return spec
        execute = loader.exec_module

        def execute_and_hook(module: ModuleType) -> None:
            execute(module)
            _call(self._hooks.pop(fullname, None), module)

        with contextlib.suppress(AttributeError):  # a loader that takes no attributes
            loader.exec_module = execute_and_hook
        return spec
