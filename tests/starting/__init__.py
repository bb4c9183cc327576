"""A marked request becomes a job: marks, owners, joining, promotion, settings."""
