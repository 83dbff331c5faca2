"""Measuring: one round after the other, with the server, the load generator and the probes of each."""
