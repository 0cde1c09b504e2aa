"""What tells one recording from another under the same name.

A recording may still grow, and may be written into another container when it ends; its first
packets stay what they are.
"""

from __future__ import annotations

import hashlib
from itertools import islice

from streaming.sources.probe import SourceInfo, open_as_probed
from streaming.sources.source import Fingerprint
from streaming.sources.trouble import SourceError

NUM_PACKETS = 64


def fingerprint(info: SourceInfo) -> Fingerprint:
    """Raises SourceError where the file cannot be read any more."""
    digest = hashlib.sha256()
    with open_as_probed(info) as video:
        for packet in islice(video.packets(), NUM_PACKETS):
            stamp = video.stamp_of(packet)
            seconds = None if stamp is None else f"{video.clock.at(stamp):.3f}"
            digest.update(f"{seconds} {packet.size} ".encode())
            digest.update(bytes(packet))
    try:
        num_bytes = info.path.stat().st_size
    except OSError as error:
        raise SourceError(f"{info.path.name} is gone.") from error
    return Fingerprint(digest.hexdigest()[:32], num_bytes)
