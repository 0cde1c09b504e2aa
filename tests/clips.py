"""Clips made on the spot for tests of what lies behind decoding: plain colours that change every
two seconds.
"""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np

COLOURS = (
    (220, 30, 30),
    (30, 200, 30),
    (30, 60, 220),
    (230, 220, 40),
    (150, 40, 190),
    (240, 240, 240),
)


def write_clip(path: Path, seconds: int, fps: int = 8, side: int = 64) -> Path:
    """An H.264 clip at `path`; from 2k s to 2k + 2 s it shows colour k, over and over."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width = stream.height = side
        stream.pix_fmt = "yuv420p"
        for number in range(seconds * fps):
            colour = COLOURS[number // fps // 2 % len(COLOURS)]
            picture = np.full((side, side, 3), colour, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path
