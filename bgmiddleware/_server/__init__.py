"""An app is served: ``serve`` runs waitress until a signal comes, and lets jobs end before the server does.

``python -m bgmiddleware serve`` and the demo call it; scripts may.
"""

from .server import PROXY_HEADERS, serve

__all__ = ["PROXY_HEADERS", "serve"]
