"""Drives a stock transformers decoder over un-rotated keys: the only file that touches its
attention classes.

Two ways through the same model, and no mode to switch between them:

- `Decoder.prefill` passes position_ids of zero, which make the decoder's own rotary step the
  identity, and a `RawAttention` as a forward argument. Transformers hands it down to our attention
  function, which sees raw queries and keys, rotates them at the positions that the context dictates
  and calls SDPA.
- `Decoder.decode` passes true positions and a `CachedAttention`: the decoder's own rotary step
  runs, and attention goes over a cache of rotated keys that `models/decode_cache.py` holds.

Knows nothing of vision, prompts or questions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from memory.chunk import KVChunk, PositionLayout
from models.cache_layout import (
    AttentionContext,
    RunView,
    causal_context,
    causal_mask,
    concat_positions,
    rotate,
    rotate_signed,
    signed_sines,
)
from models.decode_cache import CacheRow, DecodeCache

ATTENTION = "longlook"
LENS_LAYERS = 4  # last layers whose next-token distribution is read (logit lens)
LENS_TOKENS = 10  # likeliest tokens of it that count
# kinds whose frequencies do not depend on the length so far
FIXED_ROPE = ("default", "linear", "yarn", "llama3")
Rotation = tuple[Tensor, Tensor]  # cosines and sines, [n, head_dim] each


def register_attention() -> None:
    """Make `attn_implementation="longlook"` known to transformers; may be called again."""
    AttentionInterface.register(ATTENTION, attend)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)


class AttentionPass(Protocol):
    """How the attention of one forward is computed; passed to the model as `attention_pass`."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """Attention of one layer: [B, n, heads, head_dim] from query [B, heads, n, head_dim] and
        key and value [B, kv_heads, n, head_dim]."""
        ...


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    attention_pass: AttentionPass | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The registered attention function: that of the call's `attention_pass`, else stock SDPA."""
    if attention_pass is None:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return output, None
    layer = module.layer_idx
    assert isinstance(layer, int) and attention_mask is None
    return attention_pass.attend(layer, query, key, value, options["scaling"]), None


class _RotatedContext:
    """The context of one stream, its keys rotated for all layers at once.

    prefixes (one for each run), recent: keys and values [layers, 2, kv_heads, n, head_dim], or None
    without any.
    """

    def __init__(
        self,
        context: AttentionContext,
        rotation_of: Callable[[Tensor], Rotation],
        device: torch.device,
    ):
        prefix = [chunk.to(device) for chunk in context.prefix]
        recent = [chunk.to(device) for chunk in context.recent]
        cosines, sines = rotation_of(context.positions)
        num_recent = context.num_recent_tokens
        self.runs = context.runs
        self.num_recent = num_recent
        self.num_new = context.num_new_tokens
        self.new_rotation = cosines[num_recent:], sines[num_recent:]
        self.recent = _rotated(recent, (cosines[:num_recent], sines[:num_recent]))
        self.prefixes = [
            _rotated(prefix, rotation_of(run.prefix_positions)) for run in context.runs
        ]

    def keys_and_values(self, layer: int, number: int, run: RunView, new: Tensor) -> Tensor:
        """Everything that run `number` sees in a layer, [2, kv_heads, n, head_dim].

        new: keys (rotated) and values of this stream's new tokens, in the same shape.
        """
        start = max(0, run.first_visible - self.num_recent)
        parts = [new[:, :, start : run.own.stop]]
        if self.recent is not None and run.first_visible < self.num_recent:
            parts.insert(0, self.recent[layer][:, :, run.first_visible :])
        prefix = self.prefixes[number]
        if prefix is not None:
            parts.insert(0, prefix[layer])
        return torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]


def _rotated(chunks: Sequence[KVChunk], rotation: Rotation) -> Tensor | None:
    """Keys, rotated, and values of chunks one after the other, [layers, 2, kv_heads, n, head_dim];
    None without any.
    """
    if not chunks:
        return None
    keys = torch.cat([chunk.keys for chunk in chunks], dim=2)
    values = torch.cat([chunk.values for chunk in chunks], dim=2)
    return torch.stack([rotate(keys, *rotation), values], dim=1)


class RawAttention:
    """One forward over raw keys, for runs of one stream or several; collects what it sees layer by
    layer.

    queries: [heads, n, head_dim], keys and values: [kv_heads, n, head_dim] of each layer so far,
    un-rotated; n counts
        the new tokens of all streams, one stream after the other.
    """

    def __init__(self, contexts: Sequence[_RotatedContext], keep_queries: bool = False) -> None:
        self._contexts = contexts
        self._cosines = torch.cat([context.new_rotation[0] for context in contexts])
        self._sines = signed_sines(torch.cat([context.new_rotation[1] for context in contexts]))
        self._masks: dict[tuple[int, int], Tensor | None] = {}
        self._keep_queries = keep_queries
        self.queries: list[Tensor] = []
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """See `AttentionPass`; B is 1."""
        assert layer == len(self.keys), f"layer {layer} came after {len(self.keys)} layers"
        self.keys.append(key[0])
        self.values.append(value[0])
        if self._keep_queries:
            self.queries.append(query[0])
        rotated = rotate_signed(torch.cat([query[0], key[0]]), self._cosines, self._sines)
        queries, keys = rotated[: query.shape[1]], rotated[query.shape[1] :]
        new = torch.stack([keys, value[0]])
        outputs = []
        start = 0
        for context in self._contexts:
            stop = start + context.num_new
            own_new = new[:, :, start:stop]
            for number, run in enumerate(context.runs):
                seen_keys, seen_values = context.keys_and_values(layer, number, run, own_new)
                own = queries[:, start + run.own.start : start + run.own.stop]
                outputs.append(
                    self._attend_run(own, seen_keys, seen_values, scaling).transpose(1, 2)
                )
            start = stop
        return torch.cat(outputs, dim=1)

    def _attend_run(self, queries: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
        """[1, heads, n, head_dim] of queries that are the last of all tokens, causal among
        themselves.
        """
        size = queries.shape[1], keys.shape[1]
        if size not in self._masks:
            self._masks[size] = causal_mask(*size, queries.device)
        mask = self._masks[size]
        return scaled_dot_product_attention(
            queries[None],
            keys[None],
            values[None],
            attn_mask=mask,
            is_causal=mask is None,
            scale=scaling,
            enable_gqa=keys.shape[0] != queries.shape[0],
        )


class Decoder:
    """The text model of a stock checkpoint and its output head; holds no state of a stream."""

    def __init__(self, text_model: Any, head: Any) -> None:
        kind = text_model.rotary_emb.rope_type
        if kind not in FIXED_ROPE:
            raise ValueError(
                f"rotary embeddings of kind {kind!r} change with the length and cannot be "
                f"applied later"
            )
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
    def prefill(
        self,
        embeddings: Tensor,
        layout: PositionLayout,
        context: Sequence[KVChunk],
        keep_queries: bool = False,
    ) -> RawAttention:
        """Run n tokens [n, hidden] after `context`, causal among themselves; gives their raw keys
        and values.
        """
        return self.prefill_packed(
            [causal_context(context, layout)], embeddings, keep_queries=keep_queries
        )

    @torch.no_grad()
    def prefill_packed(
        self,
        contexts: Sequence[AttentionContext],
        embeddings: Tensor,
        visual: Tensor | None = None,
        deepstack: Sequence[Tensor] = (),
        keep_queries: bool = False,
    ) -> RawAttention:
        """The same for the new tokens of several streams, one after the other, each seeing its own
        context.

        embeddings: [n, hidden]. visual: bool [n]. deepstack: per early layer, [visual tokens,
        hidden] to add there.
        """
        n = embeddings.shape[0]
        rotated = [_RotatedContext(context, self._rotation, self.device) for context in contexts]
        attention_pass = RawAttention(rotated, keep_queries)
        self._model(
            inputs_embeds=embeddings[None],
            position_ids=torch.zeros(3, 1, n, dtype=torch.long, device=self.device),
            use_cache=False,
            visual_pos_masks=None if visual is None else visual[None].to(self.device),
            deepstack_visual_embeds=list(deepstack) or None,
            attention_pass=attention_pass,
        )
        return attention_pass

    @torch.no_grad()
    def add_row(self, cache: DecodeCache, context: Sequence[KVChunk], room: int) -> CacheRow:
        """A row of the cache that holds `context`, rotated at compact positions, with room for more
        tokens.
        """
        return self.add_rows(cache, [context], [room])[0]

    def add_rows(
        self, cache: DecodeCache, contexts: Sequence[Sequence[KVChunk]], rooms: Sequence[int]
    ) -> list[CacheRow]:
        """The same for several rows; a context that follows itself is rotated once."""
        rows: list[CacheRow] = []
        try:
            for number, (context, room) in enumerate(zip(contexts, rooms, strict=True)):
                if number == 0 or context is not contexts[number - 1]:
                    keys, values, extent = self._rotated(context)
                rows.append(cache.add_row(keys, values, extent, room))
        except BaseException:
            for row in reversed(rows):
                cache.remove_row(row)
            raise
        return rows

    def _rotated(self, context: Sequence[KVChunk]) -> tuple[Tensor, Tensor, int]:
        """Rotated keys and values [layers, kv_heads, n, head_dim], and the next free position."""
        positions, extent = concat_positions([chunk.layout for chunk in context])
        cosines, sines = self._rotation(positions)
        context = [chunk.to(self.device) for chunk in context]
        keys = torch.cat([chunk.keys for chunk in context], dim=2)
        values = torch.cat([chunk.values for chunk in context], dim=2)
        return rotate(keys, cosines, sines), values, extent

    @torch.no_grad()
    def decode(
        self,
        cache: DecodeCache,
        rows: Sequence[CacheRow],
        tokens: Tensor,
        counts: Sequence[int] | None = None,
        **options: Any,
    ) -> Any:
        """Append text tokens, int64 [rows, n], to rows of the cache; the model's output for them.

        counts: how many tokens of each row are real, the first ones; None: all of them.
        """
        counts = counts or [tokens.shape[1]] * len(rows)
        attention_pass = cache.begin_step(rows, counts)
        positions = cache.next_positions(rows, tokens.shape[1])
        output = self._model(
            inputs_embeds=self._model.embed_tokens(tokens),
            position_ids=positions.expand(3, *positions.shape),
            use_cache=False,
            attention_pass=attention_pass,
            **options,
        )
        cache.end_step(rows, counts)
        return output

    def append_prompts(
        self, cache: DecodeCache, rows: Sequence[CacheRow], prompts: Sequence[Sequence[int]]
    ) -> Tensor:
        """Append token ids of different lengths to rows, in one pass; their last hidden states
        [tokens of all prompts, hidden], prompt by prompt.
        """
        counts = [len(prompt) for prompt in prompts]
        tokens = torch.zeros(len(prompts), max(counts), dtype=torch.int64)
        for number, prompt in enumerate(prompts):
            tokens[number, : len(prompt)] = torch.tensor(prompt, dtype=torch.int64)
        output = self.decode(cache, rows, tokens.to(self.device), counts)
        states = output.last_hidden_state
        is_real = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
        return states[is_real.to(states.device)]  # type: ignore[no-any-return]

    def next_logits(self, cache: DecodeCache, rows: Sequence[CacheRow], tokens: Tensor) -> Tensor:
        """Append tokens [rows, n]; float32 logits [rows, vocabulary] of what comes next in each
        row.
        """
        return self.head(self.last_state(cache, rows, tokens))

    def last_state(self, cache: DecodeCache, rows: Sequence[CacheRow], tokens: Tensor) -> Tensor:
        """The same before the output head: the last hidden state [rows, hidden]."""
        return self.decode(cache, rows, tokens).last_hidden_state[:, -1]  # type: ignore[no-any-return]

    @torch.no_grad()
    def head(self, states: Tensor) -> Tensor:
        """Float32 logits [..., vocabulary] of hidden states."""
        return self._head(states).float()  # type: ignore[no-any-return]

    @torch.no_grad()
    def uncertainty(self, cache: DecodeCache, row: CacheRow, tokens: Tensor) -> float:
        """Append tokens [1, n]; how unsure the model is of the next one, from 0 to 1.

        Mean entropy of the ten likeliest next tokens, to base 10, over the last four layers read
        through the output head (logit lens). 0: all layers are sure of one token; 1: ten are
        equally likely to each.
        """
        output = self.decode(cache, [row], tokens, output_hidden_states=True)
        layers = output.hidden_states[1:]  # the first entry is the embeddings
        earlier = [self._model.norm(hidden[0, -1]) for hidden in layers[-LENS_LAYERS:-1]]
        # the last one comes normalised
        states = torch.stack([*earlier, output.last_hidden_state[0, -1]])
        log_probs = self.head(states).topk(LENS_TOKENS).values.log_softmax(-1)
        return float(-(log_probs.exp() * log_probs).sum(-1).mean() / math.log(LENS_TOKENS))

    def _rotation(self, positions: Tensor) -> Rotation:
        """Cosines and sines [n, head_dim] for positions [3, n].

        Queries and keys leave the identity step already multiplied by the rotary's own scale (not 1
        for YaRN), so it is divided out here.
        """
        rotary = self._model.rotary_emb
        probe = torch.empty(0, dtype=self.dtype, device=self.device)
        cosines, sines = rotary(probe, positions[:, None].to(self.device))
        scale = rotary.attention_scaling
        return (cosines[0], sines[0]) if scale == 1 else (cosines[0] / scale, sines[0] / scale)
