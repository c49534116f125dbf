"""Measuring pieces of a run between two processes, under the same gate as a run."""
