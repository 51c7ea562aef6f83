"""Agent Memory Fabric: one unit of scheduling for a whole agent pipeline, above unmodified LLM engines."""

__version__ = "0.1.0"
