"""Choices. One question a file; a policy is a function that reads a view and never writes. Naming another swaps it."""
