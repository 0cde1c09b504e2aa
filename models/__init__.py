"""Video LLMs as longlook drives them, over unmodified transformers."""
