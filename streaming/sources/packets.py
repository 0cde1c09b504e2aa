"""What the packets of a file tell undecoded: when pictures are shown, and whether that can be built
on.

Knows nothing of pictures.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streaming.sources.pictures import VideoFile, stamp_of
from streaming.sources.probe import SourceInfo

_JUMP_SECONDS = 1.0  # decoding times that fall back further begin anew
_MOST_CLAIMED_PER_PICTURE = 100  # by duration and rate, which are loose where the rate varies


@dataclass(frozen=True, eq=False)
class PacketScan:
    """What the packets of a file tell undecoded.

    times: float64 [n], when each picture is shown, ascending, in seconds; hidden ones are left out.
    are_timed: every packet has its time, and none begins anew.
    lean_back: some pictures are shown before the keyframe they follow, and lean on the pictures
    before it (open GOP).
    are_as_claimed: the header's count, duration and rate fit what is there.
    """

    times: NDArray[np.float64]
    are_timed: bool
    lean_back: bool
    are_as_claimed: bool


def scan(info: SourceInfo) -> PacketScan:
    """Read all packets of the file, undecoded."""
    times: list[float] = []
    num_hidden = 0
    decoding_seconds = keyframe_seconds = float("-inf")
    are_timed, lean_back = True, False
    with VideoFile(info.path, info.first_stamp) as file:
        for packet in file.packets():
            stamp = stamp_of(packet)
            if stamp is None:
                return PacketScan(
                    np.zeros(0), are_timed=False, lean_back=False, are_as_claimed=False
                )
            seconds = file.clock.at(stamp)
            if packet.dts is not None:
                are_timed &= file.clock.at(packet.dts) >= decoding_seconds - _JUMP_SECONDS
                decoding_seconds = file.clock.at(packet.dts)
            if packet.is_keyframe:
                keyframe_seconds = seconds
            lean_back |= seconds < keyframe_seconds
            num_hidden += packet.is_discard
            if not packet.is_discard:
                times.append(seconds)
        claimed = file.stream.frames
    num_by_duration = (info.duration_seconds or 0.0) * info.rate
    fits = claimed in (
        0,
        len(times) + num_hidden,
    ) and 0 <= num_by_duration < _MOST_CLAIMED_PER_PICTURE * len(times)
    return PacketScan(np.sort(np.array(times, np.float64)), are_timed, lean_back, fits)
