"""The other shell: a simulated engine with its own truth, workloads, virtual time and reports. It reads and writes only
the files it is given."""
