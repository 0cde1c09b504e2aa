"""What models made for tests do with several chunks: nothing but `prefill`, one after the other."""

from __future__ import annotations

from collections.abc import Sequence

from memory.chunk import KVChunk
from models.base import VisualGroup


class OneByOne:
    """`prefill_together` for a model that has `prefill`. A group has one token, whatever its size."""

    def num_group_tokens(self, height: int, width: int) -> int:
        return 1

    def prefill(self, groups: Sequence[VisualGroup], context: Sequence[KVChunk], index: int) -> KVChunk:
        raise NotImplementedError

    def prefill_together(
        self,
        runs: Sequence[Sequence[VisualGroup]],
        head: Sequence[KVChunk],
        near: Sequence[KVChunk],
        reach: int,
        index: int,
    ) -> list[KVChunk]:
        return [self.prefill(groups, head, number) for number, groups in enumerate(runs, index)]
