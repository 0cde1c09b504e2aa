"""Captions of many videos: found, cut into segments, captioned, written in formats others read."""
