"""Rotated keys and values of answers under way, one row each, so that all of them decode as one
batch.

    row 0   context of answer A, its question, its tokens so far | room
    row 1   context of answer B, ...               | room
    row 2   (free)

Buffers are allocated ahead: a token is written in place, nothing is concatenated. They grow, by
copying, only when an answer joins that does not fit, and a row that leaves is filled by the last
one, so the rows in use are always the first ones. What is beyond a row's length is masked, so
neighbours never change a result. Knows nothing of models or text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from models.cache_layout import causal_mask

COLUMN_STEP = 256  # tokens by which the room of all rows grows


@dataclass(eq=False)
class CacheRow:
    """One answer's place in the cache.

    row: which one, as of now. length: tokens it holds. position: of its next token. capacity:
    tokens it may hold.
    """

    row: int
    length: int
    position: int
    capacity: int


class DecodeCache:
    """Buffers of shape [layers, rows, kv_heads, columns, head_dim]; one thread at a time."""

    def __init__(self) -> None:
        self._keys: Tensor | None = None
        self._values: Tensor | None = None
        self._rows: list[CacheRow] = []

    @property
    def num_rows(self) -> int:
        return len(self._rows)

    @property
    def memory_bytes(self) -> int:
        """Of both buffers, rooms included."""
        if self._keys is None or self._values is None:
            return 0
        return self._keys.nbytes + self._values.nbytes

    def add_row(self, keys: Tensor, values: Tensor, position: int, room: int) -> CacheRow:
        """A row that holds rotated keys and values [layers, kv_heads, n, head_dim], with room for
        more tokens.

        position: of the first token to come.
        """
        n = keys.shape[2]
        row = CacheRow(len(self._rows), n, position, n + room)
        self._reserve(keys, len(self._rows) + 1, row.capacity)
        assert self._keys is not None and self._values is not None
        self._keys[:, row.row, :, :n] = keys
        self._values[:, row.row, :, :n] = values
        self._rows.append(row)
        return row

    def remove_row(self, row: CacheRow) -> None:
        """Frees a row; the last one takes its place. The buffers go with the last row."""
        assert self._rows[row.row] is row, "this row is not in the cache"
        last = self._rows.pop()
        if last is not row:
            assert self._keys is not None and self._values is not None
            self._keys[:, row.row, :, : last.length] = self._keys[:, last.row, :, : last.length]
            self._values[:, row.row, :, : last.length] = self._values[:, last.row, :, : last.length]
            last.row = row.row
            self._rows[row.row] = last
        if not self._rows:
            self._keys = self._values = None

    def begin_step(self, rows: Sequence[CacheRow], counts: Sequence[int]) -> CachedAttention:
        """How the next `counts` tokens of these rows attend: of one row, or of neighbours in their
        order. A row with fewer tokens than another gets padding, which nothing sees.
        """
        assert self._keys is not None and self._values is not None
        for row, count in zip(rows, counts, strict=True):
            if row.length + count > row.capacity:
                raise ValueError(
                    f"a row with room for {row.capacity} tokens cannot hold {row.length + count}"
                )
        first = rows[0].row
        if len(rows) == 1:
            return OneRowAttention(self._keys[:, first], self._values[:, first], rows[0].length)
        stop = first + len(rows)
        assert [row.row for row in rows] == list(range(first, stop)), "not neighbours in order"
        columns = max(row.length + count for row, count in zip(rows, counts, strict=True))
        keys = self._keys[:, first:stop, :, :columns]
        values = self._values[:, first:stop, :, :columns]
        return RowsAttention(keys, values, [row.length for row in rows], counts)

    def next_positions(self, rows: Sequence[CacheRow], num_tokens: int) -> Tensor:
        """Positions of the next tokens of each row, int64 [rows, n]."""
        assert self._keys is not None
        starts = torch.tensor([row.position for row in rows], device=self._keys.device)
        return starts[:, None] + torch.arange(num_tokens, device=self._keys.device)

    def end_step(self, rows: Sequence[CacheRow], counts: Sequence[int]) -> None:
        """Counts the tokens that the step has written."""
        for row, count in zip(rows, counts, strict=True):
            row.length += count
            row.position += count

    def drop_last(self, rows: Sequence[CacheRow], counts: Sequence[int]) -> None:
        """Takes back the newest tokens of each row; the next step writes over them."""
        self.end_step(rows, [-count for count in counts])

    def memory_bytes_with(self, like: Tensor, num_tokens: int) -> int:
        """Bytes of both buffers once a row of so many tokens has joined; like: keys [layers,
        kv_heads, n, head_dim].
        """
        rows, columns = self._size_with(self.num_rows + 1, num_tokens)
        return (
            2 * like.shape[0] * rows * like.shape[1] * columns * like.shape[3] * like.element_size()
        )

    def _reserve(self, like: Tensor, num_rows: int, num_columns: int) -> None:
        """Makes room for so many rows and columns, copying what is there if the buffers must
        grow.
        """
        rows, columns = self._size_with(num_rows, num_columns)
        if self._keys is not None and (rows, columns) == (self._keys.shape[1], self._keys.shape[3]):
            return
        layers, heads, _, head_dim = like.shape
        shape = (layers, rows, heads, columns, head_dim)
        self._keys = self._grown(self._keys, like.new_zeros(shape))  # what is masked must be finite
        self._values = self._grown(self._values, like.new_zeros(shape))

    def _size_with(self, num_rows: int, num_columns: int) -> tuple[int, int]:
        """Rows and columns of buffers with so much room; rows double, so that joining costs little
        on average.
        """
        rows, columns = (0, 0) if self._keys is None else (self._keys.shape[1], self._keys.shape[3])
        if num_rows > rows:
            rows = num_rows if rows == 0 else 2 * rows
        if num_columns > columns:
            columns = -(-num_columns // COLUMN_STEP) * COLUMN_STEP
        return rows, columns

    def _grown(self, old: Tensor | None, new: Tensor) -> Tensor:
        if old is not None:
            new[:, : self.num_rows, :, : old.shape[3]] = old[:, : self.num_rows]
        return new


class OneRowAttention:
    """n new tokens of one row see all tokens before them; keys and values are written behind those
    it has.
    """

    def __init__(self, keys: Tensor, values: Tensor, length: int) -> None:
        self._keys, self._values, self._length = keys, values, length
        self._mask: Tensor | None = None

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        n = query.shape[2]
        stop = self._length + n
        self._keys[layer, :, self._length : stop] = key[0]
        self._values[layer, :, self._length : stop] = value[0]
        if layer == 0:
            self._mask = causal_mask(n, stop, query.device) if n > 1 else None
        output = scaled_dot_product_attention(
            query,
            self._keys[layer, None, :, :stop],
            self._values[layer, None, :, :stop],
            attn_mask=self._mask,
            is_causal=n > 1 and self._mask is None,
            scale=scaling,
            enable_gqa=key.shape[1] != query.shape[1],
        )
        return output.transpose(1, 2).contiguous()


class RowsAttention:
    """New tokens of every row, each seeing the tokens of its own row up to itself."""

    def __init__(
        self, keys: Tensor, values: Tensor, lengths: Sequence[int], counts: Sequence[int]
    ) -> None:
        """keys, values: [layers, rows, kv_heads, columns, head_dim]; lengths: tokens of the rows
        before this step; counts: new tokens of each, what is beyond them is padding.
        """
        self._keys, self._values = keys, values
        device = keys.device
        lengths_before = torch.tensor(lengths, device=device)[:, None]
        tokens = torch.arange(max(counts), device=device)
        columns = lengths_before + tokens
        is_real = tokens < torch.tensor(counts, device=device)[:, None]
        self._rows, self._tokens = is_real.nonzero(as_tuple=True)
        self._columns = columns[is_real]
        # [rows, tokens, columns]; what padding sees does not matter, as long as it sees something
        self._mask = torch.arange(keys.shape[3], device=device) <= columns[..., None]

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        self._keys[layer][self._rows, :, self._columns] = key[self._rows, :, self._tokens]
        self._values[layer][self._rows, :, self._columns] = value[self._rows, :, self._tokens]
        # Query heads that share a KV head become queries of it, so that its keys are read once and
        # not repeated.
        num_rows, num_heads, num_tokens, head_dim = query.shape
        num_kv_heads = key.shape[1]
        shared = query.reshape(num_rows, num_kv_heads, -1, head_dim)
        mask = self._mask.repeat(1, num_heads // num_kv_heads, 1)[:, None]
        output = scaled_dot_product_attention(
            shared, self._keys[layer], self._values[layer], attn_mask=mask, scale=scaling
        )
        return output.reshape(num_rows, num_heads, num_tokens, head_dim).transpose(1, 2)


CachedAttention = OneRowAttention | RowsAttention
