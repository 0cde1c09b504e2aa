"""The embedded model: a small video LLM trained on a procedural world."""
