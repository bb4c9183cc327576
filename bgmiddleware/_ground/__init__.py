"""Small helpers that every room may use: check numbers, load an object by its name, wait for a descriptor, read
``Prefer``, screen requests, replace secrets, send a POST, call methods weakly, and import WebOb quietly. They know
nothing of jobs."""
