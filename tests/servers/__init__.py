"""Real servers with several processes: start, drain, restart."""
