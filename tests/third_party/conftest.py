"""The plugins in this folder are distributions.

Their tests run in the environment where they are installed.
"""

collect_ignore_glob = ["gateway-*"]
