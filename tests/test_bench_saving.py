"""The benches of reuse and pruning measure what they say, on a real clip of their own making."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from bench import savings, vit_reuse
from bench.clips import static_camera
from bench.machine import counted
from bench.savings import Row
from config import Config, PruneConfig, ReuseConfig
from tests.clips import write_clip


@pytest.fixture(autouse=True)
def _gradients() -> Iterator[None]:
    yield
    torch.set_grad_enabled(True)  # what a bench switches off is on again behind it


def test_all_ways_through_a_clip_see_the_same_frames(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", 6)
    with pytest.raises(typer.Exit):
        savings.main(clip, "demo", 60, 4, 1, 0.5, "cpu", tmp_path / "out")
    rows = {row["way"]: row for row in json.loads((tmp_path / "out.json").read_text())["rows"]}
    assert list(rows) == ["stock", *savings.WAYS] and {row["frames"] for row in rows.values()} == {
        12
    }
    assert (
        rows["reuse"]["tokens"]
        == rows["plain"]["tokens"]
        >= rows["pruning"]["tokens"]
        == rows["both"]["tokens"]
    )
    assert rows["both, 8 bits"]["kv_bytes"] < rows["both"]["kv_bytes"] / 2, "from float32"
    assert rows["stock"]["gmacs"] > 0 and rows["both"]["gmacs"] <= rows["plain"]["gmacs"]


def test_each_model_is_measured_with_its_own_share_of_tokens() -> None:
    assert savings.own_settings("demo").prune.budget == 0.5 != PruneConfig().budget
    assert savings.own_settings("qwen3-vl-4b") == Config()


def test_the_products_of_matrices_and_of_attention_are_counted() -> None:
    x, mask = torch.randn(1, 4, 100, 32), torch.ones(100, 70, dtype=torch.bool)

    def attend(num_keys: int, num_heads: int, **how: Any) -> torch.Tensor:
        keys = x[:, :num_heads, :num_keys]
        return torch.nn.functional.scaled_dot_product_attention(x, keys, keys, **how)

    with torch.no_grad():
        _, causal = counted(lambda: attend(100, 4, is_causal=True))
        _, masked = counted(lambda: attend(70, 2, attn_mask=mask, enable_gqa=True))
        made, product = counted(lambda: x[0, 0] @ x[0, 0].T)
    assert causal == pytest.approx(2 * 4 * 100 * 100 * 32 / 1e9)
    assert masked == pytest.approx(0.7 * causal) and product == pytest.approx(causal / 8)
    assert made.shape == (100, 100)


def test_a_target_of_savings_is_missed_where_it_is() -> None:
    def rows(seconds: float, held: int) -> list[Row]:
        return [
            Row("stock", 10, 8.0, 1.0, 100, 100),
            Row("plain", 10, 4.0, 1.0, 100, 100),
            Row("both", 10, seconds, 1.0, 20, held),
        ]

    assert savings.missed(rows(2.0, 25), own_bits=16) == []
    assert len(savings.missed(rows(2.1, 25), 16)) == len(savings.missed(rows(2.0, 26), 16)) == 1
    assert (
        savings.missed([*rows(2.1, 26), Row("both, 8 bits", 10, 2.0, 1.0, 20, 25)], own_bits=8)
        == []
    )


def test_reuse_is_measured_against_the_stock_tower() -> None:
    frames = static_camera(128, 12)
    with torch.no_grad():
        demo = vit_reuse.subject("demo", torch.device("cpu"))
        assert vit_reuse.check_equal(demo, frames) < vit_reuse.TOLERANCE
        row = vit_reuse.Runs(demo, frames, ReuseConfig("novelty")).row("static camera", repeats=1)
        blind = vit_reuse.Runs(demo, frames, ReuseConfig("novelty", still_below=1.0)).row(
            "static camera", repeats=1
        )
    assert row.frames == 12 and sum(row.work.values()) == pytest.approx(1)
    assert blind.cosine < row.cosine <= 1.0001 and blind.reused_gmacs < row.reused_gmacs
    assert ("wanted" in " ".join(vit_reuse.missed([row]))) == (row.ratio < vit_reuse.FASTER)
