"""The plugins in this folder are distributions; their tests run in the environment where they are installed."""

collect_ignore_glob = ["gateway-*"]
