"""How well cache policies keep a model's answers on real text, next to their cost on shares."""
