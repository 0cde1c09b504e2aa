"""Makes a checkpoint of states that a training has saved: the mean of their weights.

python -m training.finish runs/demo/mean.pt [more.pt ...] --out models/demo/weights
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from models.demo.tokenizer import build_tokenizer
from training.train import new_model, save


def mean_of(states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Name by name, in single precision."""
    return {
        name: torch.stack([state[name].float() for state in states]).mean(0) for name in states[0]
    }


def main(
    states: Annotated[list[Path], typer.Argument(help="Saved states.")],
    out: Annotated[Path, typer.Option(help="Where the model goes.")] = Path("models/demo/weights"),
) -> None:
    """Write the mean of some states as a checkpoint folder."""
    tokenizer = build_tokenizer()
    model = new_model(tokenizer, 0)
    loaded = [torch.load(path, weights_only=True, map_location="cpu")["model"] for path in states]
    model.load_state_dict(mean_of(loaded))
    save(model, tokenizer, out)


if __name__ == "__main__":
    typer.run(main)
