"""Trains the demo model: paint a bank of scenes, learn to see, learn to bind and answer, save as a checkpoint.

    python -m training.train [--folder runs/demo] [--out models/demo/weights]

Every stage leaves its state in the folder and goes on from there when the command is given again; Ctrl-C loses at most
the last minute. On two CPU cores the whole takes a few hours; `--bind-steps` and `--see-steps` scale it.
"""

from __future__ import annotations

import ctypes
import json
import logging
import platform
import time
from collections import defaultdict, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen3VLForConditionalGeneration

from models.demo.architecture import MERGE, PATCH, SIDE, demo_config
from models.demo.tokenizer import build_tokenizer, special_ids
from training import bind, lookalikes, recalled, see
from training.aids import Aids, Learner, Step, sum_of
from training.bank import Bank, build
from training.bind import Batch, ClipMaker, Stage
from training.optimiser import Schedule, make_optimisers, mixed_precision
from training.scenes import FPS, FRAMES_PER_GROUP, GROUPS_PER_CHUNK
from training.unchanged import Worth

log = logging.getLogger("longlook.train")

GLANCE = Stage("glance", groups=(1, 2), chunks=(1, 1), batch=32, questions=8)
CHUNK = Stage("chunk", groups=(2, 4), chunks=(1, 1), pruned=0.2, batch=16)
SHORT = Stage("short", groups=(4, 4), chunks=(2, 3), hidden=0.1, pruned=0.4, batch=8, far=0.8, questions=14)
LONG = Stage("long", groups=(4, 4), chunks=(4, 9), hidden=0.2, pruned=0.4, batch=4, far=0.6, questions=20)
FEW = Stage("recalled few", groups=(4, 4), chunks=(4, 12), questions=60, recalled=True, pruned=0.3)
MANY = Stage("recalled", groups=(4, 4), chunks=(12, 36), questions=60, recalled=True, pruned=0.3)
# (share of the steps, stages with their weights): see first, then bind, then at length and as recall brings it back.
Curriculum = tuple[tuple[float, tuple[tuple[Stage, float], ...]], ...]
CURRICULUM: Curriculum = (
    (0.06, ((GLANCE, 1.0),)),
    (0.16, ((GLANCE, 0.15), (CHUNK, 0.85))),
    (0.28, ((CHUNK, 0.25), (SHORT, 0.35), (FEW, 0.4))),
    (0.50, ((CHUNK, 0.05), (SHORT, 0.1), (FEW, 0.1), (LONG, 0.2), (MANY, 0.55))),
)
# How the model wants to be used: as it was trained, and kept in as few bits as cost no answer (bench/recall.py).
RECOMMENDED = {
    "read": {"fps": FPS},
    "memory": {"chunk_frames": GROUPS_PER_CHUNK * FRAMES_PER_GROUP, "kv_bits": 8},
    "prune": {"strategy": "novelty", "budget": 0.5},
    "answer": {"max_new_tokens": 64, "dialogue_turns": 0},
}
AID_WEIGHT = 0.3
MISTAKEN_FROM = 0.6  # share of the steps after which the model can be asked what it takes for what
SAVE_EVERY = 50  # steps
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's mallopt


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3VLForConditionalGeneration:
    torch.manual_seed(seed)
    return Qwen3VLForConditionalGeneration(demo_config(len(tokenizer), special_ids(tokenizer)))


def train_see(model: Qwen3VLForConditionalGeneration, bank: Bank, folder: Path, steps: int, seed: int) -> None:
    since = time.monotonic()
    done = folder / "tower.pt"
    if not done.exists():
        for step, loss, right in see.train_tower(model.model.visual, bank, folder / "see.pt", steps, seed=seed):
            log.info("see: %s", see.log_line(step, loss, right, since))
        torch.save(model.model.visual.state_dict(), done)
    model.model.visual.load_state_dict(torch.load(done, weights_only=True))


def bank_features(model: Qwen3VLForConditionalGeneration, bank: Bank, folder: Path) -> tuple[Tensor, Tensor]:
    path = folder / "features.pt"
    if not path.exists():
        torch.save(see.features(model.model.visual, bank.frames), path)
    embeddings, deepstack = torch.load(path, weights_only=True)
    return embeddings, deepstack


def bank_worth(bank: Bank, embeddings: Tensor, folder: Path) -> Worth:
    """What a pruner would keep of the bank; made once."""
    path = folder / "worth.npz"
    if not path.exists():
        Worth.of(bank.frames, embeddings, bank.first_group).save(path)
    return Worth.load(path)


def stages_at(progress: float) -> Sequence[tuple[Stage, float]]:
    """The mixture of stages after this share of the training."""
    for share, stages in CURRICULUM:
        if progress < share:
            return stages
        progress -= share
    return CURRICULUM[-1][1]


class Tally:
    """Accuracy per family over the latest questions."""

    def __init__(self, latest: int = 300) -> None:
        self.aids = ""
        self.right: dict[str, deque[bool]] = defaultdict(lambda: deque(maxlen=latest))

    def add(self, logits: Tensor, batch: Batch) -> None:
        for question, right in bind.right_answers(logits, batch):
            self.right[question.family].append(right)

    def __str__(self) -> str:
        return (
            self.aids + " | " + " ".join(f"{family} {sum(r) / len(r):.2f}" for family, r in sorted(self.right.items()))
        )


def bind_step(learner: Learner, stage: Stage, rng: np.random.Generator) -> Step:
    """Clips with their questions behind them."""
    batch = bind.draw_batch(learner.maker, stage, rng)
    with mixed_precision():
        logits = bind.answer_logits(learner.model, *learner.features, batch)
    return Step(batch, logits, *learner.aids.losses(batch))


def train_bind(
    model: Qwen3VLForConditionalGeneration,
    maker: ClipMaker,
    features: tuple[Tensor, Tensor],
    folder: Path,
    steps: int,
    seed: int,
) -> None:
    """The LLM alone, the tower frozen; resumes from the folder's newest state."""
    model.model.visual.requires_grad_(False)
    aids = Aids(model.model.language_model)
    checkpoint = folder / "bind.pt"
    schedule = Schedule(make_optimisers(nn.ModuleList([model, aids]), muon_lr=0.01, adam_lr=2e-3), steps, warm_up=60)
    start = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        aids.load_state_dict(saved["aids"])
        schedule.load_state_dict(saved["schedule"])
        start = schedule.done
    learner = Learner(model, aids, maker, features)
    tally, since, total = Tally(), time.monotonic(), 0.0
    for step in range(start, steps):
        torch.manual_seed(seed * 1_000_003 + step)  # of the aids, so that a resumed training is the uninterrupted one
        rng = np.random.default_rng(seed * 1_000_003 + step)
        stage = bind.pick_stage(rng, stages_at(step / steps))
        if step >= MISTAKEN_FROM * steps and not maker.mistaken:
            maker.mistaken = lookalikes.kept(folder / "mistaken.json", learner)
        done = recalled.step(learner, stage, rng) if stage.recalled else bind_step(learner, stage, rng)
        loss = bind.answer_loss(done.logits, done.batch.targets)
        torch.autograd.backward(loss + AID_WEIGHT * sum_of(done.helped.values()))
        schedule.step()
        tally.add(done.logits.detach(), done.batch)
        tally.aids = (
            " ".join(f"{name} {float(value.detach()):.2f}" for name, value in done.helped.items())
            + " hit@1"
            + "".join(f" {name} {share:.2f}" for name, share in done.hits.items())
        )
        total += float(loss.detach())
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            log.info(
                "bind: step %d loss %.3f (%.0f s) %s",
                step + 1,
                total / SAVE_EVERY,
                time.monotonic() - since,
                tally,
            )
            total = 0.0
            state = {"model": model.state_dict(), "aids": aids.state_dict(), "schedule": schedule.state_dict()}
            torch.save(state, checkpoint.with_suffix(".part"))
            checkpoint.with_suffix(".part").rename(checkpoint)


def keep_freed_memory() -> None:
    """Have glibc keep what tensors give back instead of returning it to the system, which takes half of a step's time:
    the next step asks for the same again."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def save(model: Qwen3VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """An ordinary checkpoint folder: bf16 safetensors, tokenizer, preprocessing."""
    out.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(out, safe_serialization=True)
    tokenizer.save_pretrained(out)
    pixels = SIDE * SIDE
    preprocessing = {
        "patch_size": PATCH,
        "temporal_patch_size": 2,
        "merge_size": MERGE,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "size": {"shortest_edge": pixels, "longest_edge": pixels},
    }
    (out / "longlook.json").write_text(json.dumps(RECOMMENDED, indent=2) + "\n")
    (out / "preprocessor_config.json").write_text(json.dumps(preprocessing, indent=2) + "\n")


def main(
    folder: Annotated[Path, typer.Option(help="Where the bank and the checkpoints are kept.")] = Path("runs/demo"),
    out: Annotated[Path, typer.Option(help="Where the finished model goes.")] = Path("models/demo/weights"),
    chunks: Annotated[int, typer.Option(help="Chunks of four seconds in the bank.")] = 20_000,
    see_steps: Annotated[int, typer.Option(help="Steps of the seeing stage.")] = 1400,
    bind_steps: Annotated[int, typer.Option(help="Steps of the binding stage.")] = 3300,
    seed: Annotated[int, typer.Option(help="Seed of everything.")] = 1,
) -> None:
    """Train the demo model from nothing, or go on where it stopped."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    keep_freed_memory()
    tokenizer = build_tokenizer()
    model = new_model(tokenizer, seed)
    bank = build(folder / "bank", chunks, seed)
    train_see(model, bank, folder, see_steps, seed)
    features = bank_features(model, bank, folder)
    maker = ClipMaker(bank.scenes, bank.first_group, tokenizer, bank_worth(bank, features[0], folder))
    train_bind(model, maker, features, folder, bind_steps, seed)
    save(model, tokenizer, out)
    log.info("saved to %s", out)


if __name__ == "__main__":
    typer.run(main)
