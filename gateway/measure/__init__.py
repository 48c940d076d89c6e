"""Measurements of links, device load, memory and service times. None, not 0, stands for unknown."""
