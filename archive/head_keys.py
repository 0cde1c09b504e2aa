"""The raw keys of the retrieval heads of every segment, in 8 bits, beside a video's journal.

They find what was seen without a word of caption: a thing matches a segment as well as its best
token does, and several things together as well as the sum says (late interaction, ColBERT, arXiv
2004.12832). Knows nothing of questions.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from errors import LonglookError
from models.calibration import Profile

LEVELS = 127  # of 8 bits, on both sides of zero


def owner_of(model_id: str, profile: Profile) -> str:
    """Names the model and the heads that keys belong to."""
    heads = ", ".join(f"{head.layer}.{head.head}" for head in profile.heads)
    return f"{model_id} (heads {heads})"


def write_keys(path: Path, segments: Sequence[Tensor], owner: str) -> None:
    """Keys of consecutive segments, each float32 [heads, n, head_dim], into one file."""
    heads, _, head_dim = segments[0].shape
    scales = torch.stack([_scales(keys) for keys in segments])
    rounded = [
        (keys / scale[:, None]).round().to(torch.int8)
        for keys, scale in zip(segments, scales, strict=True)
    ]
    borders = np.cumsum([0, *(keys.shape[1] for keys in segments)])
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    with new.open("wb") as file:
        np.savez(
            file,
            keys=torch.cat(rounded, 1).numpy().reshape(heads, -1, head_dim),
            scales=scales.numpy(),
            borders=borders,
            owner=np.array(owner),
        )
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)  # noqa: PTH105  atomic, and says so


def _scales(keys: Tensor) -> Tensor:
    """A step for each channel, [heads, head_dim]: a few channels are far larger than the others."""
    if not keys.shape[1]:
        return torch.ones(keys.shape[0], keys.shape[2])
    return (keys.abs().amax(1) / LEVELS).clamp_min(1e-12)


def sum_of_matches(path: Path, queries: Tensor, owner: str) -> NDArray[np.float64]:
    """For each head and segment of a file the sum over query tokens of the best match.

    queries: [heads, q, head_dim]. Gives [heads, segments]; minus infinity for a segment without
    tokens. Raises LonglookError for keys of another model or other heads.
    """
    with np.load(path, allow_pickle=False) as data:
        if str(data["owner"]) != owner:
            raise LonglookError(
                f"the archive was captioned with {data['owner']}, and {owner} can't read that; "
                "search with the same model, or caption again"
            )
        keys, scales, borders = data["keys"], data["scales"], data["borders"]
    num_segments = len(borders) - 1
    scores = np.full((len(queries), num_segments), -np.inf)
    for segment in range(num_segments):
        start, stop = borders[segment], borders[segment + 1]
        if stop == start:
            continue
        own = torch.from_numpy(keys[:, start:stop]).float()
        own = own * torch.from_numpy(scales[segment])[:, None]
        matches = torch.einsum("hqd,hnd->hqn", queries, own)
        scores[:, segment] = matches.amax(2).sum(1).numpy()
    return scores
