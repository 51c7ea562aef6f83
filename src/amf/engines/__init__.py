"""Outward I/O: one adapter per inference engine behind the `Engine` protocol."""
