"""``python -m bgmiddleware``, as real processes."""
