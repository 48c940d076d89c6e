"""Which backends may get work: a circuit breaker, a quarantine and a list of missing endpoints for each."""
