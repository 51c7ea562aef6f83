"""The other shell: a simulated engine with its own truth, workloads, virtual time and reports. No I/O beyond files it is given."""
