"""Small pictures for the page: JPEG files that a browser fetches by URL, gone with their folder."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ui.render import StripPicture, thinned

LONGEST_SIDE = 320
JPEG_QUALITY = 80
SEEN_LIMIT = 2048  # of a tab: some ten megabytes on the disk, two hours of full chunks


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


class SeenPictures:
    """A picture of every chunk that a tab has seen: evidence needs no file to be read again.

    Beyond a limit they are thinned, evenly over time. One thread adds, others may look.
    """

    def __init__(self, folder: PictureFolder, limit: int = SEEN_LIMIT) -> None:
        self._folder = folder
        self._limit = limit
        self._all: tuple[StripPicture, ...] = ()

    def add(self, seconds: float, image: NDArray[np.uint8]) -> StripPicture:
        """Keep a picture, later than all before it; uint8 [H, W, 3]."""
        new = StripPicture(seconds, self._folder.add(image))
        kept = (*self._all, new)
        surplus = thinned(kept, self._limit)
        if surplus is not None:
            self._folder.remove(surplus.url)
            kept = tuple(item for item in kept if item is not surplus)
        self._all = kept
        return new

    def has(self, picture: StripPicture) -> bool:
        """Whether it has not been thinned out."""
        return picture in self._all

    def within(self, start_seconds: float, stop_seconds: float) -> str | None:
        """The URL of the picture nearest to the middle of a stretch, None if there is none in
        it.
        """
        middle = (start_seconds + stop_seconds) / 2
        inside = [item for item in self._all if start_seconds <= item.pts_seconds < stop_seconds]
        best = min(inside, key=lambda item: abs(item.pts_seconds - middle), default=None)
        return None if best is None else best.url


def url_of(path: Path) -> str:
    """Where the page's server offers a file that it is allowed to show."""
    return f"gradio_api/file={quote(path.as_posix())}"
