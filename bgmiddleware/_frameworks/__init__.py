"""What frameworks need where a request is left half-way, and where a function of a view runs outside of its request.

``unwinding``: when a view was left by what is no ``Exception``. ``surroundings``: what is around a view, put around a
``@background`` function. ``routes``: which views an app calls. All look at what the app has imported already, and
import nothing else.
"""

from .routes import undecorated_views
from .surroundings import Surroundings, run_within, surroundings
from .unwinding import unwind

__all__ = ["Surroundings", "run_within", "surroundings", "undecorated_views", "unwind"]
