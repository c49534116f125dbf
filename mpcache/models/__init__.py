"""Model families, their weights and the one decoder text."""
