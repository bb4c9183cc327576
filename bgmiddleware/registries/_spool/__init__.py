"""What a :class:`~bgmiddleware.registries.spool.SpoolRegistry` is made of: an SQLite index and append-only files.

``index``, ``rows`` and ``store`` keep records and states, ``jobfiles``, ``layout`` and ``writer`` the bytes; ``waking``
tells readers of news, ``clock`` is the host's own, ``directory`` guards the place.
"""
