"""One worker's KV memory in virtual time, under several ways to lay it out (docs/fragmentation.md)."""
