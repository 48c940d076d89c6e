"""Where a request may go, and where it should: a pure policy, and a breaker per backend."""
