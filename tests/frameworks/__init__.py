"""Views of each framework in the background."""
