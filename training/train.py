"""Trains the embedded model: paint a bank of scenes, learn to see, learn to answer, save as a
checkpoint.

    python -m training.train --minutes 240 [--start models/demo/weights] [--out models/demo/weights]

Everything is timed by the clock: the rates end at zero when the minutes are over, whatever machine
it runs on. While processes paint, the tower already learns from what is there. States are saved now
and then in the folder; `--resume` goes on from one of them. With a GPU a few minutes are enough; on
two CPU cores it takes hours.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from multiprocessing import Value
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Annotated, Any

import numpy as np
import torch
import typer
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerFast, Qwen3VLForConditionalGeneration

from models.demo.architecture import MERGE, PATCH, SIDE, demo_config
from models.demo.tokenizer import build_tokenizer, special_ids
from training import see
from training.bank import MOST_TOKENS, PATCH_VALUES, PATCHES_PER_TOKEN, Bank, Painting, Shard
from training.bind import ClipMaker, Stage, pick_stage
from training.learn import Aids, Learner, Result, learn
from training.lookalikes import mistaken
from training.optimiser import Schedule, make_optimisers
from training.pictures import LABELS
from training.plan import Packed, Words, make_plan, pack, unpack
from training.questions import FAMILIES
from training.scenes import FPS, FRAMES_PER_GROUP, GROUPS_PER_CHUNK
from training.unchanged import Worth

log = logging.getLogger("longlook.train")

GLANCE = Stage("glance", groups=(1, 2), chunks=(1, 1), questions=6)
CHUNK = Stage("chunk", groups=(2, 4), chunks=(1, 1), pruned=0.2, questions=8)
SHORT = Stage("short", groups=(4, 4), chunks=(2, 4), hidden=0.1, pruned=0.35, far=0.6, questions=14)
LONG = Stage("long", groups=(4, 4), chunks=(4, 9), hidden=0.15, pruned=0.35, far=0.6, questions=20)
FEW = Stage("recalled few", groups=(4, 4), chunks=(4, 12), questions=3, recalled=True, pruned=0.3)
MANY = Stage("recalled", groups=(4, 4), chunks=(12, 36), questions=2, recalled=True, pruned=0.3)
# (share of the work, stages with their weights): see first, then bind, then at length and as recall
# brings it back.
Curriculum = tuple[tuple[float, tuple[tuple[Stage, float], ...]], ...]
FROM_NOTHING: Curriculum = (
    (0.06, ((GLANCE, 1.0),)),
    (0.16, ((GLANCE, 0.15), (CHUNK, 0.85))),
    (0.28, ((CHUNK, 0.25), (SHORT, 0.35), (FEW, 0.4))),
    (0.50, ((CHUNK, 0.1), (SHORT, 0.2), (FEW, 0.1), (LONG, 0.25), (MANY, 0.35))),
)
FROM_WEIGHTS: Curriculum = (
    (0.06, ((GLANCE, 0.4), (CHUNK, 0.6))),
    (0.24, ((CHUNK, 0.35), (SHORT, 0.4), (FEW, 0.25))),
    (0.70, ((CHUNK, 0.15), (SHORT, 0.28), (FEW, 0.1), (LONG, 0.22), (MANY, 0.25))),
)
# How the model wants to be used: as it was trained, and kept in as few bits as cost no answer
# (bench/recall.py).
RECOMMENDED = {
    "read": {"fps": FPS},
    "memory": {"chunk_frames": GROUPS_PER_CHUNK * FRAMES_PER_GROUP, "kv_bits": 8},
    "prune": {"strategy": "novelty", "budget": 0.5},
    "answer": {"max_new_tokens": 96, "dialogue_turns": 0},
}
NUM_COPIES = 3  # of the bank's features, under other light and noise, that the LLM learns from
AID_WEIGHT = 0.3
# share of the binding after which the model can be asked what it takes for what
MISTAKEN_FROM = 0.4
MEAN_STEPS = 60  # that the running mean of the weights looks back over, about
SEE_MUON, SEE_ADAM = 0.01, 1.5e-3  # rates
BIND_MUON, BIND_ADAM = 0.01, 2e-3


@dataclass(frozen=True)
class Plans:
    """How large the steps are and how the time is shared."""

    minutes: float
    see_share: float = 0.27
    see_batch: int = 1024
    step_chunks: int = 288
    step_questions: int = 512
    rate: float = 0.6  # of the rates of a training from nothing
    save_seconds: float = 45.0


@dataclass(frozen=True)
class Clock:
    """Time that a stage has, from `start` to `stop`."""

    start: float
    stop: float

    @property
    def done(self) -> float:
        return min(1.0, (time.monotonic() - self.start) / max(1e-9, self.stop - self.start))


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3VLForConditionalGeneration:
    torch.manual_seed(seed)
    return Qwen3VLForConditionalGeneration(demo_config(len(tokenizer), special_ids(tokenizer)))


def warm_start(model: nn.Module, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """The weights of an earlier model where shapes match; words keep their rows wherever they stand
    now.
    """
    old = {name: value.float() for name, value in load_file(folder / "model.safetensors").items()}
    now = model.state_dict()
    words = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    numbers = dict[str, int](words["model"]["vocab"])
    with torch.no_grad():
        for name, value in now.items():
            before = old.get(name)
            if name.endswith("embed_tokens.weight") and before is not None:
                for word, number in tokenizer.get_vocab().items():
                    if word in numbers:
                        value[number] = before[numbers[word]]
            elif before is not None and before.shape == value.shape:
                value.copy_(before)


class GrowingBank:
    """Shards as they get ready, on the device; grows while the tower learns."""

    def __init__(self, painting: Painting, num_groups: int, device: torch.device) -> None:
        self._painting = painting
        self._queue: SimpleQueue[tuple[int, Shard] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._receive, args=(painting,), daemon=True)
        self._thread.start()
        self._device, self._parts, self.complete = device, dict[int, Shard](), False
        shape = (num_groups, MOST_TOKENS * PATCHES_PER_TOKEN, PATCH_VALUES)
        self.patches = torch.empty(shape, dtype=torch.uint8, device=device)
        self.labels = torch.empty(
            (num_groups, MOST_TOKENS, len(LABELS)), dtype=torch.int8, device=device
        )
        self.grids = torch.empty(num_groups, dtype=torch.int64, device=device)
        self.size = 0
        self.of_grid: dict[int, Tensor] = {}

    def _receive(self, shards: Iterable[tuple[int, Shard]]) -> None:
        for part in shards:
            self._queue.put(part)
        self._queue.put(None)

    def take(self, wait: bool = False) -> None:
        """Everything that has arrived; wait: at least one part."""
        grew = False
        while not self.complete:
            try:
                part = self._queue.get(block=wait and not grew)
            except Empty:
                break
            if part is None:
                self.complete = True
                break
            self._add(*part)
            grew = True
        if grew:
            grids = self.grids[: self.size]
            self.of_grid = {int(g): (grids == g).nonzero()[:, 0] for g in grids.unique()}  # type: ignore[no-untyped-call]

    def _add(self, number: int, shard: Shard) -> None:
        start, stop = self.size, self.size + len(shard.grids)
        if stop > len(self.patches):
            stop = len(self.patches)
        count = stop - start
        self.patches[start:stop] = torch.from_numpy(shard.patches[:count]).to(self._device)
        self.labels[start:stop] = torch.from_numpy(shard.labels[:count]).to(self._device)
        self.grids[start:stop] = torch.from_numpy(shard.grids[:count]).to(self._device)
        self.size = stop
        empty = np.zeros((0, 1, 1), dtype=np.uint8)
        self._parts[len(self._parts)] = Shard(
            empty, empty.astype(np.int8), shard.grids[:count], shard.scenes
        )

    def finish(self, wait: bool) -> Bank:
        """What has arrived, in that order; nothing more is painted. Patches stay on the device."""
        while wait and not self.complete:
            self.take(wait=True)
        self.take()
        self._painting.stop()
        return Bank.of(list(self._parts.values()))


def train_see(
    tower: nn.Module,
    bank: GrowingBank,
    clock: Clock,
    plans: Plans,
    seed: int,
    most_steps: int | None = None,
) -> see.BatchedTower:
    """The tower, until the time is over."""
    device = bank.patches.device
    torch.manual_seed(seed)
    batched, heads = see.BatchedTower(tower).to(device), see.TokenHeads().to(device)
    schedule = Schedule(
        make_optimisers(nn.ModuleList([tower, heads]), SEE_MUON, SEE_ADAM), 0.04, 0.3
    )
    generator = torch.Generator(device=device).manual_seed(seed)
    rng, step, told = np.random.default_rng(seed), 0, time.monotonic()
    bank.take(wait=True)
    while clock.done < 1.0 and (most_steps is None or step < most_steps):
        if step % 20 == 0:
            bank.take()
        numbers = list(bank.of_grid)
        sizes = np.array([len(bank.of_grid[g]) for g in numbers], dtype=float)
        grid = numbers[int(rng.choice(len(numbers), p=sizes / sizes.sum()))]
        pool = bank.of_grid[grid]
        pick = pool[
            torch.randint(len(pool), (plans.see_batch,), generator=generator, device=device)
        ]
        loss = see.see_step(batched, heads, bank.patches[pick], bank.labels[pick], grid, generator)
        loss.backward()  # type: ignore[no-untyped-call]
        schedule.step(clock.done)
        step += 1
        if time.monotonic() - told > 10:
            told = time.monotonic()
            log.info("see: step %d groups %d loss %.3f", step, bank.size, float(loss.detach()))
    newest = torch.arange(max(0, bank.size - 4096), bank.size, device=device)
    right = see.accuracies(
        batched, heads, bank.patches[newest], bank.labels[newest], bank.grids[newest]
    )
    log.info(
        "see: %d steps, %s", step, " ".join(f"{name} {value:.3f}" for name, value in right.items())
    )
    return batched


class PlanSource(Dataset[Packed]):
    """Steps by number, made by the loader's workers."""

    def __init__(
        self,
        maker: ClipMaker,
        words: Words,
        curriculum: Curriculum,
        done: Any,
        plans: Plans,
        seed: int,
        told: Path,
    ) -> None:
        """done: shared share of the work, which decides on the stage. told: where look-alikes are
        written.
        """
        self._maker, self._words, self._curriculum, self._done = maker, words, curriculum, done
        self._plans, self._seed, self._told = plans, seed, told

    def __len__(self) -> int:
        return 10_000_000

    def __getitem__(self, number: int) -> Packed:
        torch.set_num_threads(1)
        if not self._maker.mistaken and self._told.exists():
            self._maker.mistaken = json.loads(self._told.read_text())
        rng = np.random.default_rng([self._seed, 53, number])
        stage = pick_stage(rng, stages_at(self._curriculum, self._done.value))
        plan = make_plan(
            self._maker,
            self._words,
            stage,
            rng,
            self._plans.step_chunks,
            self._plans.step_questions,
        )
        return pack(plan)


def stages_at(curriculum: Curriculum, progress: float) -> Sequence[tuple[Stage, float]]:
    """The mixture of stages after this share of the training."""
    for share, stages in curriculum:
        if progress < share:
            return stages
        progress -= share
    return curriculum[-1][1]


@dataclass
class Tally:
    """Right answers per family and the losses, over the latest steps. Asks the device only when
    told to speak.
    """

    results: deque[tuple[Tensor, Tensor, Result]] = field(default_factory=lambda: deque(maxlen=40))

    def add(self, family: Tensor, result: Result) -> None:
        aids = {name: value.detach() for name, value in result.aids.items()}
        self.results.append(
            (family, result.right, Result(result.loss.detach(), aids, result.right, result.hits))
        )

    def __str__(self) -> str:
        asked: dict[int, list[bool]] = defaultdict(list)
        for family, right, _ in self.results:
            for number, yes in zip(family.tolist(), right.tolist(), strict=True):
                asked[number].append(yes)
        names = list(FAMILIES)
        shares = " ".join(f"{names[n]} {sum(r) / len(r):.3f}" for n, r in sorted(asked.items()))
        latest = self.results[-1][2]
        aids = " ".join(
            f"{name} {float(value.detach()):.2f}" for name, value in latest.aids.items()
        )
        hits = " ".join(f"{name} {float(value):.2f}" for name, value in latest.hits.items())
        loss = np.mean([float(result.loss.detach()) for _, _, result in self.results])
        return f"loss {loss:.4f} | {aids} | hit@1 {hits} | {shares}"


class RunningMean:
    """The mean of a module's latest weights, kept on the device."""

    def __init__(self, module: nn.Module) -> None:
        self._live = list(module.parameters())
        self._mean = [p.detach().clone() for p in self._live]
        self._module = module

    @torch.no_grad()
    def update(self, share: float) -> None:
        torch._foreach_lerp_(self._mean, [p.detach() for p in self._live], share)

    def state_dict(self) -> dict[str, Tensor]:
        mean = {id(live): value for live, value in zip(self._live, self._mean, strict=True)}
        return {
            name: mean[id(p)] for name, p in self._module.named_parameters(remove_duplicate=False)
        }


def save_state(path: Path, model: dict[str, Tensor], aids: nn.Module) -> None:
    """Half precision: small enough to be carried about."""
    state = {
        "model": {name: value.detach().half().cpu() for name, value in model.items()},
        "aids": {name: value.detach().half().cpu() for name, value in aids.state_dict().items()},
    }
    torch.save(state, path.with_suffix(".part"))
    path.with_suffix(".part").rename(path)


def train_bind(
    learner: Learner,
    maker: ClipMaker,
    words: Words,
    clock: Clock,
    plans: Plans,
    folder: Path,
    workers: int,
    curriculum: Curriculum,
    seed: int,
    most_steps: int | None = None,
) -> None:
    """The LLM alone, the tower frozen, until the time is over. Leaves `last.pt` and `mean.pt` in
    the folder.
    """
    model, device = learner.model, learner.features[0].device
    model.model.visual.requires_grad_(False)
    trained = nn.ModuleList([model, learner.aids])
    schedule = Schedule(
        make_optimisers(trained, plans.rate * BIND_MUON, plans.rate * BIND_ADAM), 0.03, 0.3
    )
    mean, tally = RunningMean(model), Tally()
    done = Value("d", 0.0)
    told = folder / "mistaken.json"
    told.unlink(missing_ok=True)
    source = PlanSource(maker, words, curriculum, done, plans, seed, told)
    loader = DataLoader(
        source,
        batch_size=None,
        collate_fn=lambda packed: packed,
        num_workers=workers,
        prefetch_factor=3 if workers else None,
        pin_memory=device.type == "cuda",
        multiprocessing_context="fork" if workers else None,
    )
    logged = saved = time.monotonic()
    waited, step = 0.0, 0
    batches = iter(loader)
    while clock.done < 1.0 and (most_steps is None or step < most_steps):
        since = time.monotonic()
        batch = unpack(next(batches), device)
        waited += time.monotonic() - since
        try:
            result = learn(learner, batch)
            whole = result.loss + AID_WEIGHT * torch.stack(list(result.aids.values())).sum()
            whole.backward()  # type: ignore[no-untyped-call]
        except torch.OutOfMemoryError:
            log.info("bind: a step was too large")
            trained.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            continue
        done.value = clock.done
        schedule.step(done.value)
        mean.update(1 / min(step + 1, MEAN_STEPS))
        tally.add(batch["family"], result)
        step += 1
        if done.value >= MISTAKEN_FROM and not told.exists():
            found = mistaken(learner, maker, words)
            told.with_suffix(".part").write_text(json.dumps(found))
            told.with_suffix(".part").rename(told)
        now = time.monotonic()
        if now - logged > 10 or clock.done >= 1.0:
            log.info("bind: step %d done %.2f waited %.0f s %s", step, done.value, waited, tally)
            logged = now
        if now - saved > plans.save_seconds:
            save_state(folder / "last.pt", model.state_dict(), learner.aids)
            save_state(folder / "mean.pt", mean.state_dict(), learner.aids)
            saved = now
    save_state(folder / "last.pt", model.state_dict(), learner.aids)
    save_state(folder / "mean.pt", mean.state_dict(), learner.aids)


def save(
    model: Qwen3VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, out: Path
) -> None:
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


def load_state(path: Path, model: nn.Module, aids: nn.Module | None = None) -> None:
    state = torch.load(path, weights_only=True, map_location="cpu")
    model.load_state_dict({name: value.float() for name, value in state["model"].items()})
    if aids is not None:
        aids.load_state_dict({name: value.float() for name, value in state["aids"].items()})


def main(
    minutes: Annotated[float, typer.Option(help="Time for everything, painting included.")] = 240.0,
    folder: Annotated[Path, typer.Option(help="Where states and the log are kept.")] = Path(
        "runs/demo"
    ),
    bank: Annotated[
        Path | None, typer.Option(help="Where the painted bank is kept; none: in the folder.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where the finished model goes, if anywhere.")
    ] = None,
    start: Annotated[
        Path | None, typer.Option(help="Weights to start from; none: from nothing.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="A saved state to go on from, its tower as it is.")
    ] = None,
    chunks: Annotated[int, typer.Option(help="Chunks of four seconds in the bank.")] = 20_000,
    workers: Annotated[int, typer.Option(help="Processes that paint, and then prepare steps.")] = 2,
    see_share: Annotated[float, typer.Option(help="Share of the time for the tower.")] = 0.27,
    see_batch: Annotated[int, typer.Option(help="Groups of a step of the tower.")] = 1024,
    step_chunks: Annotated[int, typer.Option(help="Chunks of a step of the LLM.")] = 288,
    step_questions: Annotated[
        int, typer.Option(help="Questions of a step of the LLM, at most.")
    ] = 512,
    rate: Annotated[
        float, typer.Option(help="Of the LLM's rates, those from nothing being 1.")
    ] = 0.6,
    most_steps: Annotated[int | None, typer.Option(help="Of each stage, for a trial.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything.")] = 2,
) -> None:
    """Train the embedded model, from nothing or from earlier weights."""
    began = time.monotonic()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    folder.mkdir(parents=True, exist_ok=True)
    handlers: list[logging.Handler] = [
        logging.StreamHandler(),
        logging.FileHandler(folder / "log.txt"),
    ]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", handlers=handlers)
    plans = Plans(minutes, see_share, see_batch, step_chunks, step_questions, rate)
    num_shards = max(workers, min(128, chunks // 50))
    # before the GPU is touched
    painting = Painting(bank or folder / "bank", chunks, seed, workers, num_shards)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    if resume is not None:
        see_share = 0.0
    growing = GrowingBank(
        painting, num_groups=(chunks + 2 * num_shards) * GROUPS_PER_CHUNK, device=device
    )
    tokenizer = build_tokenizer()
    model = new_model(tokenizer, seed)
    if start is not None:
        warm_start(model, tokenizer, start)
    model.to(device)
    aids = Aids(model.model.language_model).to(device)
    if resume is not None:
        load_state(resume, model, aids)
    stop = began + 60 * minutes
    log.info("on %s, %.0f s after the start", device, time.monotonic() - began)
    see_clock = Clock(began, began + 60 * minutes * see_share)
    batched = train_see(model.model.visual, growing, see_clock, plans, seed, most_steps)
    whole = growing.finish(wait=resume is not None)
    patches, grids = growing.patches[: growing.size], growing.grids[: growing.size]
    generator = torch.Generator(device=device).manual_seed(seed + 1)
    copies = [
        see.features(batched, patches, grids, None if k == 0 else generator)
        for k in range(NUM_COPIES)
    ]
    flat = [torch.cat([copy[level] for copy in copies]).flatten(0, 1) for level in (0, 1)]
    log.info(
        "bank: %d groups, %d scenes, %.0f s",
        growing.size,
        len(whole.scenes),
        time.monotonic() - began,
    )
    save_state(folder / "tower.pt", model.model.visual.state_dict(), nn.Module())
    worth = Worth.of(patches, copies[0][0], grids, whole.first_group)
    words = Words(tokenizer)
    scene_grids = whole.grids[np.array(whole.first_group)].tolist()
    maker = ClipMaker(whole.scenes, whole.first_group, tokenizer, worth, scene_grids)
    learner = Learner(model, aids, (flat[0], flat[1]), len(words.prefix), NUM_COPIES)
    curriculum = FROM_NOTHING if start is None and resume is None else FROM_WEIGHTS
    log.info("bind begins after %.0f s", time.monotonic() - began)
    clock = Clock(time.monotonic(), stop)
    train_bind(learner, maker, words, clock, plans, folder, workers, curriculum, seed, most_steps)
    if out is not None:
        load_state(folder / "mean.pt", model)
        save(model.cpu(), tokenizer, out)
    log.info("done after %.0f s", time.monotonic() - began)


if __name__ == "__main__":
    typer.run(main)
