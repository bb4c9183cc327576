"""The documents, the demo, the benchmarks and the house itself are true."""
