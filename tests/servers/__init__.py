"""Network cameras for tests, each a real server in a process of its own, to be killed and frozen.

They need nothing but PyAV: `python -m tests.servers.rtsp --port 0` and the like.
"""
