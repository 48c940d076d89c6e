"""Equipment that tests share; `tests/` is on the path, so `from support.programs import needs`."""
