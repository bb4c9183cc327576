"""Tools for tests: the contracts of registries and executors."""
