"""Secure operations: one file each, with its plaintext twin, its cost and its run."""
