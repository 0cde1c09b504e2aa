"""A process that reads videos with wrong bytes: `python -m tests.mutants FOLDER FIRST COUNT`.

For each it writes a line {"number", "outcome"}: "read", "warned", or the sentence of a refusal. It
ends with an error where anything else is raised, where times go back, and by itself where it takes
too long or too much memory.
"""

from __future__ import annotations

import faulthandler
import json
import random
import resource
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from streaming.reader import Reader
from streaming.sources.file import FileSource
from streaming.sources.fingerprint import fingerprint
from streaming.sources.moments import Moments
from streaming.sources.trouble import SourceError

MOST_BYTES = 4 << 30  # of address space; libraries take half a gigabyte
MOST_SECONDS = 120  # for one clip, on a busy machine
BACK_SECONDS = 1.0  # times may jitter by less
# Names of what a container is made of, beside which its sizes, counts and times stand.
MARKS = [
    *(b"moov", b"trak", b"mdhd", b"stsd", b"stts", b"ctts", b"stss", b"stsz", b"stsc", b"stco"),
    *(b"elst", b"tkhd", b"avcC", b"moof", b"trun", b"tfhd", b"mdat", b"LIST", b"strh", b"strf"),
    *(b"idx1", b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67", b"\x16\x54\xae\x6b", b"\x1c\x53\xbb\x6b"),
    *(b"OggS", b"\x47\x40", b"\0\0\1\xe0", b"FLV", b"GIF8"),
]
EXTREMES = (0, 1, 2, 127, 128, 255)


def some_bytes(data: bytearray, dice: random.Random) -> None:
    for _ in range(dice.choice([1, 3, 30, 300])):
        data[dice.randrange(len(data))] = dice.randrange(256)


def beside_marks(data: bytearray, dice: random.Random) -> None:
    """Sizes and counts, which stand near the names of a container's parts."""
    places = [place for mark in MARKS if (place := data.find(mark)) >= 0]
    for _ in range(dice.choice([1, 2, 6])):
        place = dice.choice(places or [0]) + dice.randrange(-8, 40)
        if 0 <= place < len(data):
            data[place] = dice.choice(EXTREMES)


def without_a_piece(data: bytearray, dice: random.Random) -> None:
    start = dice.randrange(len(data))
    del data[start : start + dice.choice([1, 7, 188, 5000])]


def piece_twice(data: bytearray, dice: random.Random) -> None:
    start, length = dice.randrange(len(data)), dice.choice([4, 188, 3000])
    data[start:start] = data[start : start + length]


def cut_short(data: bytearray, dice: random.Random) -> None:
    del data[dice.randrange(1, len(data)) :]


def pieces_swapped(data: bytearray, dice: random.Random) -> None:
    length = dice.choice([16, 188, 2000])
    one, other = (dice.randrange(max(1, len(data) - length)) for _ in range(2))
    first, second = data[one : one + length], data[other : other + length]
    data[one : one + length], data[other : other + length] = second, first


CHANGES: tuple[Callable[[bytearray, random.Random], None], ...] = (
    some_bytes,
    beside_marks,
    beside_marks,
    without_a_piece,
    piece_twice,
    cut_short,
    pieces_swapped,
)


def mutant(seeds: list[Path], number: int, folder: Path) -> Path:
    """The seed clip with some bytes wrong; the same for the same number."""
    dice = random.Random(number)
    seed = dice.choice(seeds)
    data = bytearray(seed.read_bytes())
    for change in dice.sample(CHANGES, dice.choice([1, 1, 2])):
        if data:
            change(data, dice)
    path = folder / f"mutant{seed.suffix}"
    path.write_bytes(data)
    return path


def read(path: Path, number: int) -> str:
    """All that we do with a video: watch it, go on in it, look at moments again."""
    try:
        source = FileSource(path, 5.0, only_keyframes=number % 7 == 0)
        with Reader(source) as reader:
            times = [frame.pts_seconds for frame in reader]
        for before, after in pairwise(times):
            if after < before - BACK_SECONDS:
                raise AssertionError(f"the times go back from {before} to {after}")
        fingerprint(source.info)
        with Moments(path) as moments:
            moments.at([0.0, *times[-1:], *times[len(times) // 2 : len(times) // 2 + 1]])
        again = FileSource(path, 5.0, start_seconds=max(times[-1] / 2, 0.1) if times else 0.0)
        for _ in again.frames():
            break
    except SourceError as error:
        sentence = str(error)
        if not sentence.endswith(".") or "\n" in sentence:
            raise AssertionError(f"no sentence: {sentence}") from error
        return sentence.replace(path.name, "X")
    return "warned" if source.warnings else "read"


def main() -> None:
    folder, first, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    seeds = sorted((folder / "seeds").iterdir())
    for number in range(first, first + count):
        print(json.dumps({"number": number, "outcome": "begun"}), flush=True)
        faulthandler.dump_traceback_later(MOST_SECONDS, exit=True)
        outcome = read(mutant(seeds, number, folder), number)
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps({"number": number, "outcome": outcome}), flush=True)


if __name__ == "__main__":
    main()
