"""Processes and wires: transport, TLS, party and launch."""
