"""The simulated world of bench/routing.py: links, arrivals, sites, policies."""
