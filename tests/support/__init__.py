"""Modules that tests share.

`tests/` is on the path: `from support.programs import needs`.
"""
