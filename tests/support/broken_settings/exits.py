"""A plugin that ends the process on import."""

import sys

sys.exit(3)
