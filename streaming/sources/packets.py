"""What the packets of a file tell undecoded: when pictures are shown, and whether that can be built
on.

Knows nothing of pictures.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray

from streaming.sources.pictures import VideoFile
from streaming.sources.probe import SourceInfo, open_as_probed

_JUMP_SECONDS = 1.0  # decoding times that fall back further begin anew
_MOST_CLAIMED_PER_PICTURE = 100  # by duration and rate, which are loose where the rate varies


@dataclass(frozen=True, eq=False)
class PacketScan:
    """What the packets of a file tell undecoded.

    times: float64 [n], when each picture is shown, ascending, in seconds; hidden ones are left out.
    keyframes: numbers of the pictures whose packets say that they are.
    are_timed: every packet has its time, and none begins anew.
    lean_back: some pictures are shown before the keyframe they follow, and lean on the pictures
    before it (open GOP).
    are_as_claimed: the header's count, duration and rate fit what is there.
    can_be_wound: a seek to any of the keyframes lands on it, so the container lists them all.
    """

    times: NDArray[np.float64]
    keyframes: tuple[int, ...]
    are_timed: bool
    lean_back: bool
    are_as_claimed: bool
    can_be_wound: bool


UNTIMED = PacketScan(np.zeros(0), (), False, False, False, False)


def scan(info: SourceInfo) -> PacketScan:
    """Read all packets of the file, undecoded."""
    times: list[float] = []
    keyframe_stamps: list[int] = []
    num_hidden = 0
    decoding_seconds = keyframe_seconds = float("-inf")
    are_timed, lean_back = True, False
    with open_as_probed(info) as file:
        for packet in file.packets():
            stamp = file.stamp_of(packet)
            if stamp is None:
                return UNTIMED
            seconds = file.clock.at(stamp)
            if packet.dts is not None:
                are_timed &= file.clock.at(packet.dts) >= decoding_seconds - _JUMP_SECONDS
                decoding_seconds = file.clock.at(packet.dts)
            if packet.is_keyframe:
                keyframe_seconds = seconds
                keyframe_stamps.append(stamp)
            lean_back |= seconds < keyframe_seconds
            num_hidden += packet.is_discard
            if not packet.is_discard:
                times.append(seconds)
        shown = np.sort(np.array(times, np.float64))
        keyframe_times = [file.clock.at(stamp) for stamp in keyframe_stamps]
        return PacketScan(
            times=shown,
            keyframes=tuple(np.searchsorted(shown, keyframe_times).tolist()),
            are_timed=are_timed,
            lean_back=lean_back,
            are_as_claimed=_are_as_claimed(info, file, len(times), num_hidden),
            can_be_wound=are_timed and _can_be_wound(file, keyframe_stamps),
        )


def _are_as_claimed(info: SourceInfo, file: VideoFile, num_shown: int, num_hidden: int) -> bool:
    """Whether the header tells the truth: a reader may reserve room for all that it claims."""
    num_by_duration = (info.duration_seconds or 0.0) * info.rate
    is_counted = file.stream.frames in (0, num_shown + num_hidden)
    return is_counted and 0 <= num_by_duration < _MOST_CLAIMED_PER_PICTURE * num_shown


def _can_be_wound(file: VideoFile, keyframe_stamps: list[int]) -> bool:
    for stamp in keyframe_stamps:
        try:
            file.container.seek(stamp, stream=file.stream)
        except FFmpegError:
            return False
        packet = next(file.packets(), None)
        if packet is None or file.stamp_of(packet) != stamp:
            return False
    return True
