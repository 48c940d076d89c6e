"""Who asks, and whether they may: API keys, what each allows, how often and how much at once.

Pure: keys come in as values, time from clocks that are handed in. `gateway.admit.keyfile` alone touches a disk.
"""

from gateway.admit.gate import ANYBODY, Caller, Gate
from gateway.admit.keys import Key, KeysInvalid, parse_keys

__all__ = ["ANYBODY", "Caller", "Gate", "Key", "KeysInvalid", "parse_keys"]
