"""Inward I/O: public APIs in front of the fabric (see docs/journey.md for one request's way through these files)."""
