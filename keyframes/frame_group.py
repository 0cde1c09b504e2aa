"""A group of frames on its way from the source to the vision tower: one object with all that is
known of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from frames import Frame
from keyframes.frame_diff import FrameDiff


@dataclass(frozen=True, eq=False)
class FrameGroup:
    """The frames that a vision tower fuses.

    diffs: of each frame, if they were measured. is_new: whether the group goes on; a static one
    does not, and has no patches. patches: uint8 [T, values] on the CPU, as the tower reads them but
    for the normalisation; those of a token next to each other. grid: (rows, columns) of the T.
    novelty: per cell of the analysis grid, against the last keyframe, float32 [frames, rows,
    columns]; None where no work is reused. starts_anew: the last keyframe is none of the frames
    that the tower has seen, so what it computed before is no reference for this group.
    """

    frames: Sequence[Frame]
    diffs: Sequence[FrameDiff] = ()
    is_new: bool = True
    patches: Tensor | None = None
    grid: tuple[int, int] = (0, 0)
    novelty: Tensor | None = None
    starts_anew: bool = False

    @property
    def keyframes(self) -> list[bool]:
        """Which of the frames are keyframes; one that is repeated counts where it comes first."""
        return [
            diff.keyframe is not None and (k == 0 or diff.frame is not self.frames[k - 1])
            for k, diff in enumerate(self.diffs)
        ]
