"""Which scenes the model takes for showing a thing that they do not show: by the retrieval heads' own scores.

In a long stream what is most alike comes back, however rare it is; so training has to see the worst of its whole bank.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.demo.world import COLOURS, SHAPES
from training.aids import RETRIEVAL_HEADS, Learner
from training.bind import ClipMaker, Stage, collate, through_layers
from training.optimiser import mixed_precision
from training.questions import Facts, ask_presence

WORST = 48  # scenes for each name
SCENES_AT_ONCE = 32
REACH = 2  # chunks that a chunk sees
WHOLE = Stage("whole", groups=(4, 4), chunks=(1, 9))


@torch.no_grad()
def mistaken(learner: Learner) -> dict[str, list[int]]:
    """By name of a thing, the numbers of the scenes whose MaxSim with its name is best, of those without it."""
    names = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
    with mixed_precision():
        queries = _queries(learner, names)
        scores = torch.cat([_max_sim(learner, queries, numbers) for numbers in _of_one_length(learner.maker)], 1)
    order = [number for numbers in _of_one_length(learner.maker) for number in numbers]
    scores[:, order] = scores.clone()
    for row, name in zip(scores, names, strict=True):
        row[learner.maker.named.get(name, [])] = -torch.inf
    best = scores.topk(min(WORST, scores.shape[1])).indices.tolist()
    return dict(zip(names, best, strict=True))


def kept(path: Path, learner: Learner) -> dict[str, list[int]]:
    """The same, made once."""
    if not path.exists():
        path.write_text(json.dumps(mistaken(learner)))
    return dict(json.loads(path.read_text()))


def _of_one_length(maker: ClipMaker) -> Iterator[list[int]]:
    """The numbers of all scenes, those of one length together, a few at once."""
    lengths = np.array([scene.duration_seconds for scene in maker.scenes])
    for length in np.unique(lengths):
        numbers = np.flatnonzero(lengths == length).tolist()
        yield from (numbers[k : k + SCENES_AT_ONCE] for k in range(0, len(numbers), SCENES_AT_ONCE))


def _queries(learner: Learner, names: Sequence[str]) -> Tensor:
    """Raw queries of the retrieval heads where the name has been said, [names, heads, head_dim]."""
    rng, nothing = np.random.default_rng(0), Facts([])
    asked = [ask_presence(rng, nothing, name) for name in names]
    batch = collate([(learner.maker.sequence([], [question]), [question], 0) for question in asked])
    llm = learner.model.model.language_model
    llm(
        inputs_embeds=llm.embed_tokens(batch.ids),
        attention_mask=batch.allowed,
        position_ids=batch.positions,
        use_cache=False,
    )
    places = [row.names[0][0] for row in batch.rows]
    return learner.aids.heard["queries"].float()[torch.arange(len(names)), places][:, list(RETRIEVAL_HEADS)]


def _max_sim(learner: Learner, queries: Tensor, numbers: Sequence[int]) -> Tensor:
    """Summed over heads: [names, scenes]."""
    maker, rng = learner.maker, np.random.default_rng(0)
    rows = [maker.sequence(maker.scene_chunks(rng, number, 0.0, WHOLE), []) for number in numbers]
    batch = collate([(row, [], REACH) for row in rows])
    through_layers(learner.model, *learner.features, batch)
    heard = learner.aids.heard["keys"]
    keys = heard[batch.visual].float().view(len(numbers), -1, *heard.shape[2:])
    served = keys[:, :, [head // learner.aids.group_size for head in RETRIEVAL_HEADS]]
    scores: Tensor = torch.einsum("nhd,sthd->nsht", queries, served).amax(-1).sum(-1)
    return scores
