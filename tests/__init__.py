"""The tests, in the rooms of the package; what several rooms share is in ``kit``."""
