"""The tools that sites test with."""
