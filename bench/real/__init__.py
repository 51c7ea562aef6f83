"""A real engine on this machine, the simulated worker beside it, and the same requests to both."""
