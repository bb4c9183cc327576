"""The earlier place of ``serve``: scripts that serve an app by it still find it here."""

from ._commands.serve import serve

__all__ = ["serve"]
