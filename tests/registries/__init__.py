"""The contract of a registry, kept by each of them, and what each does besides."""
