"""Cache policies: one file each, written once for plaintext and for shares."""
