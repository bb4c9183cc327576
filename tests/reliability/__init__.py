"""What happens to jobs when something breaks: a matrix of faults, leaks, fuzz, and a soak."""
