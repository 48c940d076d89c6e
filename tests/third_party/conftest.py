"""The plugins below are distributions with tests of their own, run where they are installed."""

collect_ignore_glob = ["gateway-*"]
