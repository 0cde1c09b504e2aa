"""Which scenes the model takes for showing a thing that they do not show: by the retrieval heads'
own scores.

In a long stream what is most alike comes back, however rare it is; so training has to see the worst
of its whole bank.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from models.demo.world import COLOURS, SHAPES
from training.bind import ClipMaker, Stage
from training.learn import RETRIEVAL_HEADS, Learner, clip_view, run_layers
from training.optimiser import mixed_precision
from training.plan import Rows, Words

WORST = 32  # scenes for each name
MOST_SCENES = 4000  # that are looked at
SCENES_AT_ONCE = 400
REACH = 2  # chunks that a chunk sees
WHOLE = Stage("whole", groups=(4, 4), chunks=(1, 9))


@torch.no_grad()
def mistaken(learner: Learner, maker: ClipMaker, words: Words) -> dict[str, list[int]]:
    """By name of a thing, the numbers of the scenes whose MaxSim with its name is best, of those
    without it.
    """
    names = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
    numbers = range(min(MOST_SCENES, len(maker.scenes)))
    with mixed_precision(learner.features[0].device):
        queries = _queries(learner, words, names)
        parts = [numbers[k : k + SCENES_AT_ONCE] for k in range(0, len(numbers), SCENES_AT_ONCE)]
        scores = torch.cat([_max_sim(learner, maker, words, queries, part) for part in parts], 1)
    for row, name in zip(scores, names, strict=True):
        shown = [number for number in maker.named.get(name, []) if number < len(numbers)]
        row[shown] = -torch.inf
    best = scores.topk(min(WORST, scores.shape[1])).indices.tolist()
    return dict(zip(names, best, strict=True))


def _queries(learner: Learner, words: Words, names: Sequence[str]) -> Tensor:
    """Raw queries of the retrieval heads where the name has been said, [names, heads, head_dim]."""
    device = learner.features[0].device
    asked = [[*words.prefix, *words.tokens(f"Is there a {name}?"), *words.header] for name in names]
    places = [len(words.prefix) + words.names(ids[len(words.prefix) :])[0][0] for ids in asked]
    ids = torch.tensor(asked, device=device)
    n = ids.shape[1]
    llm = learner.model.model.language_model
    causal = torch.ones(n, n, dtype=torch.bool, device=device).tril().expand(len(ids), 1, n, n)
    positions = torch.arange(n, device=device).expand(3, len(ids), n)
    run_layers(llm, llm.embed_tokens(ids), positions, causal)
    heard = learner.aids.heard["queries"].float()
    return heard[torch.arange(len(names), device=device), places][:, list(RETRIEVAL_HEADS)]


def _max_sim(
    learner: Learner, maker: ClipMaker, words: Words, queries: Tensor, numbers: Sequence[int]
) -> Tensor:
    """Summed over heads: [names, scenes]."""
    rng, rows, device = np.random.default_rng(0), Rows(words), queries.device
    for number in numbers:
        rows.add(maker.scene_chunks(rng, number, 0.0, WHOLE), REACH)
    arrays = {name: torch.from_numpy(array).to(device) for name, array in rows.arrays().items()}
    feature = arrays["feature"]
    visual = (feature >= 0)[..., None]
    embeddings, deep = (part[feature.clamp(min=0)].float() * visual for part in learner.features)
    llm = learner.model.model.language_model
    hidden = torch.where(visual, embeddings, llm.embed_tokens(arrays["ids"]))
    run_layers(llm, hidden, arrays["positions"], clip_view(arrays["chunk"], arrays["reach"]), deep)
    keys = learner.aids.heard["keys"].float()  # [scenes, tokens, kv_heads, head_dim]
    served = keys[:, :, [head // learner.aids.group_size for head in RETRIEVAL_HEADS]]
    scores = torch.einsum("nhd,sthd->nsht", queries, served).masked_fill(
        ~visual[None, :, None, :, 0], -torch.inf
    )
    total: Tensor = scores.amax(-1).sum(-1)
    return total
