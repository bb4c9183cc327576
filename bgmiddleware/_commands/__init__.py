"""The commands of ``python -m bgmiddleware``: ``serve`` an app, ``work`` for an engine, look at ``jobs``.

Each module adds its own arguments to the parser and runs its command; ``__main__`` only parses.
"""
