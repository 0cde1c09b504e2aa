"""Frames in, events out: sources, the reader, and the session that tells the story."""
