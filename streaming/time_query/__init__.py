"""English times in questions: written times, the phrases around them, the spans they name."""
