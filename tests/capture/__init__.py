"""Whose output is this? The streams, the hooks, and what libraries do with them."""
