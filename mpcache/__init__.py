"""Private LLM inference with a small secret-shared KV cache."""

__version__ = "0.1.0"
