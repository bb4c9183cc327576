"""Small helpers that every room may use: check numbers, load an object by its name, wait for a descriptor, and read
``Prefer``. They know nothing of jobs."""
