"""Drive a stock transformers decoder over un-rotated keys: the only file that touches its cache and attention classes.

Two ways through the same model, and no mode to switch between them:

- `Decoder.read` gives position_ids of zero, which make the decoder's own rotary step the identity, and a `RawPass` as a
  forward argument. Transformers hands it down to our attention function, which sees raw queries and keys, rotates them
  at the positions the context dictates and calls SDPA.
- `Decoder.open` rotates a context once into a stock cache, and `Decoder.step` runs the stock path over it; without a
  `RawPass` our attention function is the stock one.

Knows nothing of vision, prompts or questions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from memory.chunk import KVChunk, PositionLayout

ATTENTION = "longlook"
LENS_LAYERS, LENS_TOKENS = 4, 10  # layers and likeliest tokens that tell how sure the model is
FIXED_ROPE = ("default", "linear", "yarn", "llama3")  # kinds whose frequencies do not depend on the length so far


def register_attention() -> None:
    """Make `attn_implementation="longlook"` known to transformers; may be called again."""
    AttentionInterface.register(ATTENTION, attend)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    raw_pass: RawPass | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The registered attention function: over raw keys when the call carries a `RawPass`, else stock SDPA."""
    if raw_pass is None:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return output, None
    layer = module.layer_idx
    assert isinstance(layer, int) and attention_mask is None
    return raw_pass.attend(layer, query, key, value, options["scaling"]), None


@dataclass(eq=False)
class RawPass:
    """One forward over raw keys: what the attention function needs, and what it collects, layer by layer.

    context: chunks in front. mask: which of all keys each of the pass's own n tokens sees, as SDPA takes it; None for
        causal over keys of its own alone.
    cosines, sines: [context tokens + n, head_dim], the rotation of every key; the last n rows are the queries' too.
    queries: [heads, n, head_dim], keys and values: [kv_heads, n, head_dim] of each layer so far, un-rotated.
    """

    context: Sequence[KVChunk]
    cosines: Tensor
    sines: Tensor
    mask: Tensor | None
    keep_queries: bool = False
    queries: list[Tensor] = field(default_factory=list)
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Attention of one layer, [1, n, heads, head_dim]; arguments as [1, heads, n, head_dim]."""
        assert layer == len(self.keys), f"layer {layer} came after {len(self.keys)} layers"
        self.keys.append(key[0])
        self.values.append(value[0])
        if self.keep_queries:
            self.queries.append(query[0])
        n = query.shape[2]
        keys = torch.cat([*(chunk.keys[layer] for chunk in self.context), key[0]], dim=1)
        values = torch.cat([*(chunk.values[layer] for chunk in self.context), value[0]], dim=1)
        output = scaled_dot_product_attention(
            rotate(query[0], self.cosines[-n:], self.sines[-n:])[None],
            rotate(keys, self.cosines, self.sines)[None],
            values[None],
            attn_mask=self.mask,
            is_causal=self.mask is None,
            scale=scaling,
            enable_gqa=keys.shape[0] != query.shape[1],
        )
        return output.transpose(1, 2).contiguous()


@dataclass(frozen=True, eq=False)
class View:
    """What n tokens see: the chunks in front of them, where all keys stand, int64 [3, context tokens + n], and a mask
    as SDPA takes it, None for plain causal."""

    context: Sequence[KVChunk]
    positions: Tensor
    mask: Tensor | None


class Decoder:
    """The text model of a stock checkpoint and its output head, one sequence at a time; holds no state of a stream."""

    def __init__(self, text_model: Any, head: Any) -> None:
        kind = text_model.rotary_emb.rope_type
        if kind not in FIXED_ROPE:
            raise ValueError(f"rotary embeddings of kind {kind!r} change with the length and cannot be applied later")
        self._model = text_model
        self._head = head

    @property
    def dtype(self) -> torch.dtype:
        return self._model.embed_tokens.weight.dtype  # type: ignore[no-any-return]

    @property
    def device(self) -> torch.device:
        return self._model.embed_tokens.weight.device  # type: ignore[no-any-return]

    @torch.no_grad()
    def embed(self, tokens: Sequence[int]) -> Tensor:
        """[n, hidden]"""
        return self._model.embed_tokens(torch.tensor(tokens, device=self.device))  # type: ignore[no-any-return]

    @torch.no_grad()
    def read(
        self,
        embeddings: Tensor,
        layout: PositionLayout,
        context: Sequence[KVChunk],
        visual: Tensor | None = None,
        deepstack: Sequence[Tensor] = (),
        keep_queries: bool = False,
    ) -> RawPass:
        """Run n tokens behind `context`, causal among themselves, and give their raw keys and values (and queries).

        embeddings: [n, hidden]. visual: bool [n]. deepstack: per early layer, [visual tokens, hidden] to add there.
        """
        return self.read_in(behind(context, layout, self.device), embeddings, visual, deepstack, keep_queries)

    @torch.no_grad()
    def read_in(
        self,
        view: View,
        embeddings: Tensor,
        visual: Tensor | None = None,
        deepstack: Sequence[Tensor] = (),
        keep_queries: bool = False,
    ) -> RawPass:
        """The same for tokens that see what `view` says."""
        n = embeddings.shape[0]
        context = [chunk.to(self.device) for chunk in view.context]
        raw_pass = RawPass(context, *self._rotation(view.positions), view.mask, keep_queries)
        self._model(
            inputs_embeds=embeddings[None],
            position_ids=torch.zeros(3, 1, n, dtype=torch.long, device=self.device),
            use_cache=False,
            visual_pos_masks=None if visual is None else visual[None].to(self.device),
            deepstack_visual_embeds=list(deepstack) or None,
            raw_pass=raw_pass,
        )
        return raw_pass

    @torch.no_grad()
    def open(self, context: Sequence[KVChunk]) -> tuple[DynamicCache, int]:
        """A stock cache holding `context`, rotated at compact positions, and the first free position behind it."""
        positions, extent = lay_out([chunk.layout for chunk in context])
        cosines, sines = self._rotation(positions)
        context = [chunk.to(self.device) for chunk in context]

        def layer(number: int) -> tuple[Tensor, Tensor]:
            keys = torch.cat([chunk.keys[number] for chunk in context], dim=1)
            values = torch.cat([chunk.values[number] for chunk in context], dim=1)
            return rotate(keys, cosines, sines)[None], values[None]

        return filled_cache(map(layer, range(context[0].keys.shape[0]))), extent

    @torch.no_grad()
    def step(self, tokens: Sequence[int], position: int, cache: DynamicCache) -> Tensor:
        """Append text tokens at `position` and on to the cache; float32 logits [vocabulary] of what comes next."""
        return self._head(self.state(tokens, position, cache)).float()  # type: ignore[no-any-return]

    @torch.no_grad()
    def state(self, tokens: Sequence[int], position: int, cache: DynamicCache) -> Tensor:
        """The same, but for what the output head is given: the last hidden state [hidden]."""
        return self._append(tokens, position, cache).last_hidden_state[0, -1]  # type: ignore[no-any-return]

    @torch.no_grad()
    def doubt(self, tokens: Sequence[int], position: int, cache: DynamicCache) -> float:
        """Mean entropy, to base 10, of the last layers' ten likeliest next tokens behind `tokens`, read through the
        output head (logit lens). 0: all layers are sure of one token; 1: ten are equally likely to each."""
        output = self._append(tokens, position, cache, output_hidden_states=True)
        layers = output.hidden_states[1:]  # behind the embeddings
        earlier = [self._model.norm(hidden[0, -1]) for hidden in layers[-LENS_LAYERS:-1]]
        states = torch.stack([*earlier, output.last_hidden_state[0, -1]])  # the last one comes normalised
        chances = self._head(states).float().topk(LENS_TOKENS).values.log_softmax(-1)
        return float(-(chances.exp() * chances).sum(-1).mean() / math.log(LENS_TOKENS))

    def _append(self, tokens: Sequence[int], position: int, cache: DynamicCache, **options: Any) -> Any:
        """The stock path over text tokens behind the cache, which grows by them."""
        places = torch.arange(position, position + len(tokens), device=self.device)
        return self._model(
            inputs_embeds=self.embed(tokens)[None],
            position_ids=places.expand(3, 1, -1),
            past_key_values=cache,
            use_cache=True,
            **options,
        )

    def _rotation(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines [n, head_dim] for positions [3, n].

        Queries and keys leave the identity step already multiplied by the rotary's own scale (not 1 for YaRN), so it is
        divided out here.
        """
        rotary = self._model.rotary_emb
        probe = torch.empty(0, dtype=self.dtype, device=self.device)
        cosines, sines = rotary(probe, positions[:, None].to(self.device))
        scale = rotary.attention_scaling
        return (cosines[0], sines[0]) if scale == 1 else (cosines[0] / scale, sines[0] / scale)


def filled_cache(layers: Iterable[tuple[Tensor, Tensor]]) -> DynamicCache:
    """A stock cache that holds the rotated keys and the values of every layer, [B, kv_heads, n, head_dim] each."""
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(layers):
        cache.update(keys, values, layer)
    return cache


def lay_out(layouts: Sequence[PositionLayout]) -> tuple[Tensor, int]:
    """Positions [3, all tokens] of runs one behind the other, each shifted by the extents before it, and their sum."""
    start, runs = 0, [torch.empty(3, 0, dtype=torch.int64)]
    for layout in layouts:
        runs.append(layout.positions + start)
        start += layout.extent
    return torch.cat(runs, dim=1), start


def behind(context: Sequence[KVChunk], layout: PositionLayout, device: torch.device) -> View:
    """What tokens see that stand behind chunks, all of them visible."""
    positions, _ = lay_out([*(chunk.layout for chunk in context), layout])
    return View(context, positions, see_context(layout.num_tokens, positions.shape[1], device))


def in_line(
    head: Sequence[KVChunk],
    near: Sequence[KVChunk],
    layouts: Sequence[PositionLayout],
    reach: int,
    device: torch.device,
) -> View:
    """What the tokens of several runs see, each run behind `head` and the last `reach` of the runs and `near` chunks
    before it, at the distances that it would have with nothing else in front.

    Rotated keys of a run are seen from different runs at one position, since only distances count. `head` stands at
    another distance from each run, so it is there once for every run, which alone sees it:

        head head near near run run     reach 2
         1    0    1    1    1   0
         0    1    0    1    1   1
    """
    if len(layouts) == 1:
        return behind([*head, *near[max(0, len(near) - reach) :]], layouts[0], device)
    head_positions, head_extent = lay_out([chunk.layout for chunk in head])
    line = [*(chunk.layout for chunk in near), *layouts]
    starts = [head_extent]
    for layout in line:
        starts.append(starts[-1] + layout.extent)
    firsts = [max(0, len(near) + run - reach) for run in range(len(layouts))]  # in the line, that each run sees
    heads = [head_positions + starts[first] - head_extent for first in firsts]
    positions = torch.cat([*heads, *(a.positions + start for a, start in zip(line, starts, strict=False))], dim=1)

    numbers = torch.arange(len(line)).repeat_interleave(torch.tensor([layout.num_tokens for layout in line]))
    n = sum(layout.num_tokens for layout in layouts)
    own = numbers[-n:, None]
    sees_line = (numbers <= own) & (numbers >= own - reach)
    sees_line &= torch.ones(n, len(numbers), dtype=torch.bool).tril(len(numbers) - n)
    owners = torch.arange(len(near), len(line)).repeat_interleave(head_positions.shape[1])
    mask = torch.cat([owners == own, sees_line], dim=1).to(device)
    return View([*head] * len(layouts) + [*near], positions, mask)


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotary embedding of [heads, n, head_dim], in the half-split arrangement of the Llama and Qwen families."""
    first, second = x.chunk(2, dim=-1)
    return x * cosines + torch.cat((-second, first), dim=-1) * sines


def see_context(n: int, total: int, device: torch.device) -> Tensor | None:
    """The mask of n queries, the last n of `total` tokens: all that is in front, causal among themselves.

        total 5, n 3:  1 1 1 0 0
                       1 1 1 1 0
                       1 1 1 1 1

    None where nothing is in front, which is plain causal. On CUDA it is symbolic, so that flash kernels apply;
    elsewhere it is written out, once per call and not per layer.
    """
    if n == total:
        return None
    if device.type == "cuda":
        return causal_lower_right(n, total)
    return torch.ones(n, total, dtype=torch.bool, device=device).tril(total - n)
