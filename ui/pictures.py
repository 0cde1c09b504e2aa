"""Small pictures for the page: JPEG files that a browser fetches by URL, gone with their folder."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from PIL import Image

LONGEST_SIDE = 320
JPEG_QUALITY = 80


class PictureFolder:
    """The pictures of one browser tab. Their names are random, so other tabs cannot guess them."""

    def __init__(self, parent: Path) -> None:
        self._folder = parent / secrets.token_urlsafe(16)
        self._folder.mkdir(parents=True)

    def add(self, image: NDArray[np.uint8]) -> str:
        """Store an image, uint8 [H, W, 3], made smaller; return its URL relative to the page."""
        picture = Image.fromarray(image)
        picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
        path = self._folder / f"{secrets.token_urlsafe(12)}.jpg"
        picture.save(path, quality=JPEG_QUALITY)
        return url_of(path)

    def remove(self, url: str) -> None:
        (self._folder / url.rsplit("/", 1)[-1]).unlink(missing_ok=True)

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


def url_of(path: Path) -> str:
    """Where the page's server offers a file that it is allowed to show."""
    return f"gradio_api/file={quote(path.as_posix())}"
