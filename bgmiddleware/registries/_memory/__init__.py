"""What a :class:`~bgmiddleware.registries.memory.MemoryRegistry` is made of: ``logs`` holds the bytes of one job, in
memory or in temporary files."""
