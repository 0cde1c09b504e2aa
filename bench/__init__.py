"""Measurements: recall over long streams, and what watching costs."""
