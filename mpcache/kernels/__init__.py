"""Local arithmetic: ring products and plaintext attention. No shares, no I/O."""
