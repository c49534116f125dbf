"""Ledgers and twins in, JSON and Markdown out."""
