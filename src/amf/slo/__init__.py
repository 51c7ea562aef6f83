"""What an end-to-end deadline means for a graph: its distribution, its budgets, the load that keeps it. `amf slo`."""
