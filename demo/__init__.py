"""Small apps that show what one line does: ``python -m demo``, then open the address that it prints.

Each module is complete, and meant to be copied from.
"""

import os

__all__ = ["PAUSE"]

PAUSE = float(os.environ.get("DEMO_PAUSE", "1"))
"""Seconds that a slow thing takes, so that there is something to wait for."""
