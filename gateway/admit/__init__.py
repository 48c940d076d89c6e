"""API keys, authorization and rate limits: which caller may use which model or task, and how often.

No I/O: keys are passed in as values, clocks as functions. Only `gateway.admit.keyfile` touches a disk.
"""

from gateway.admit.gate import ANONYMOUS, Caller, Gate
from gateway.admit.keys import Key, KeysInvalid, parse_keys

__all__ = ["ANONYMOUS", "Caller", "Gate", "Key", "KeysInvalid", "parse_keys"]
