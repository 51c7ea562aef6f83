"""The pure machine: events in, decisions out. No clock, no I/O, no randomness, no logging (see docs/architecture.md)."""
