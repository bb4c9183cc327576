"""What it costs, beside what it may cost: ``python -m benchmarks.unmarked``, ``….printing``, ``….viewers``."""
