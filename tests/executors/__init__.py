"""The contract of an executor, kept by each of them, and what each does besides."""
