"""What the embedded model is trained on is what the driver will give it: pictures, tower, tokens,
places and views.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from config import AnswerConfig, Config
from frames import Frame
from memory.chunk import KVChunk
from models import pixels
from models.checkpoint import recommended_settings
from models.demo.architecture import GRID, HIDDEN, MERGE, PATCH, SIDE, TOKENS_PER_GROUP
from models.demo.tokenizer import build_tokenizer
from models.demo.world import COLOURS, SHAPES, Thing, WorldEvent
from models.loading import load
from models.pixels import PixelSpec, fit_size, normalise
from models.pixels import patchify as stock_patchify
from models.qwen3_vl import Qwen3VL
from models.video_llm import Head
from training import bank as bank_file
from training import finish, learn, lookalikes, optimiser, plan, see, train
from training.bank import GRIDS, Bank, _painted_scene, patchify, scene_frames
from training.bind import ClipMaker, Stage, StoredChunk
from training.looks import ASPECTS, Look, look_of
from training.pictures import LABELS, scene_labels
from training.plan import Asked, Looks, Rows, Video, Words, make_plan, pack, unpack
from training.questions import Question
from training.scenes import GROUPS_PER_CHUNK, Moment, group_times, random_scene
from training.unchanged import Worth

TOKENIZER = build_tokenizer()
WORDS = Words(TOKENIZER)
SPEC = PixelSpec(
    PATCH, 2, 2, min_pixels=2 * SIDE * SIDE, max_pixels=2 * SIDE * SIDE, budget_frames=2
)
QUESTIONS = [
    Question("colour", "What color is the ring?", "cyan"),
    Question("when", "When does the red star appear?", "at 4021 seconds"),
    Question("other", "How are you?", "no"),
]
WIDE = GRIDS.index((3, 5))


@dataclass(frozen=True, eq=False)
class Small:
    """A seeded network of the model's shape, as rounded by its checkpoint, and the same through the
    driver.
    """

    network: Any
    driver: Qwen3VL
    folder: Path


@dataclass(frozen=True, eq=False)
class Painted:
    """Scenes as a bank, and the frames that its patches come from."""

    bank: Bank
    frames: list[np.ndarray]  # of each group


@pytest.fixture(autouse=True)
def _frames_stay_as_large_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bank's frames are resized already; a wide one of that size alone would be enlarged
    again.
    """
    monkeypatch.setattr(pixels, "fit_size", lambda height, width, spec: (height, width))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    folder = tmp_path_factory.mktemp("demo") / "weights"
    saved = train.new_model(TOKENIZER, 3)
    train.save(saved, TOKENIZER, folder)
    # afresh, since rounding a network rounds its rotary frequencies too
    network = train.new_model(TOKENIZER, 0)
    network.load_state_dict(saved.state_dict())
    driver = load(folder, device="cpu")
    assert isinstance(driver, Qwen3VL)
    return Small(network.eval().requires_grad_(False), driver, folder)


@pytest.fixture(scope="module")
def painted() -> Painted:
    """Four square scenes and two wide ones."""
    rng = np.random.default_rng(1)
    scenes = [random_scene(rng, length) for length in (1, 2, 1, 3, 2, 1)]
    looks = [
        Look(scene.background_seed, "classic", grid=GRIDS[0] if n < 4 else (3, 5))
        for n, scene in enumerate(scenes)
    ]
    frames = [
        group
        for scene, look in zip(scenes, looks, strict=True)
        for group in scene_frames(scene, look)
    ]
    return Painted(
        Bank.of([_painted_scene(scene, look) for scene, look in zip(scenes, looks, strict=True)]),
        frames,
    )


@pytest.fixture(scope="module")
def maker(painted: Painted) -> ClipMaker:
    return maker_of(painted.bank)


def maker_of(bank: Bank, worth: Worth | None = None) -> ClipMaker:
    return ClipMaker(
        bank.scenes, bank.first_group, TOKENIZER, worth, bank.grids[bank.first_group].tolist()
    )


def learner_of(network: Any, bank: Bank) -> learn.Learner:
    batched = see.BatchedTower(network.model.visual)
    made = see.features(batched, torch.from_numpy(bank.patches), torch.from_numpy(bank.grids))
    flat = made[0].flatten(0, 1), made[1].flatten(0, 1)
    return learn.Learner(network, learn.Aids(network.model.language_model), flat, len(WORDS.prefix))


def gap(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def as_batch(arrays: plan.Plan) -> dict[str, Tensor]:
    return unpack(pack(arrays), torch.device("cpu"))


# --- seeing ----


@pytest.mark.parametrize("grid", range(len(GRIDS)))
def test_patches_are_those_of_the_models_preprocessing(grid: int) -> None:
    rows, columns = GRIDS[grid]
    frames = np.random.default_rng(grid).integers(
        0, 256, (3, 2, rows * 16, columns * 16, 3), dtype=np.uint8
    )
    ours = see.as_floats(torch.from_numpy(patchify(frames)))
    for group, patches in zip(frames, ours, strict=True):
        pixels = normalise(torch.from_numpy(group).permute(0, 3, 1, 2), SPEC)
        assert gap(stock_patchify(pixels[None], SPEC)[0], patches) < 1e-6
    assert gap(see.as_floats(torch.from_numpy(patchify(frames[:, ::-1].copy()))), ours) > 0.01


def test_a_picture_of_any_size_comes_to_a_grid_of_training() -> None:
    assert all(fit_size(side, side, SPEC) == (SIDE, SIDE) for side in range(16, 1100))
    sizes = {
        (4, 4): (480, 480),
        (3, 5): (720, 1280),
        (2, 5): (480, 854),
        (2, 6): (364, 854),
        (3, 4): (480, 640),
    }
    sizes |= {(4, 3): (640, 480), (5, 3): (640, 360), (5, 2): (854, 480)}
    assert set(sizes) == set(ASPECTS)
    for (rows, columns), (height, width) in sizes.items():
        assert fit_size(height, width, SPEC) == (rows * 16, columns * 16)
        assert abs(ASPECTS[rows, columns] - width / height) < 1e-3


@pytest.mark.parametrize("grid", range(len(GRIDS)))
def test_the_batched_tower_is_the_stock_tower(small: Small, grid: int) -> None:
    tower, (rows, columns) = small.network.model.visual, GRIDS[grid]
    patches = torch.randn(
        6, see.num_patches(grid), 384, generator=torch.Generator().manual_seed(grid)
    )
    with torch.no_grad():
        embeddings, deepstack = see.BatchedTower(tower)(patches, grid)
        stock = tower(
            patches.flatten(0, 1), grid_thw=torch.tensor([[1, rows * MERGE, columns * MERGE]] * 6)
        )
        patches[4, 9] += 1
        touched, _ = see.BatchedTower(tower)(patches, grid)
    assert embeddings.shape == deepstack.shape == (6, rows * columns, HIDDEN)
    assert gap(embeddings.flatten(0, 1), stock.pooler_output) < 1e-5
    assert gap(deepstack.flatten(0, 1), stock.deepstack_features[0]) < 1e-5
    differs = (touched - embeddings).abs().amax(dim=(1, 2)) > 1e-5
    assert differs.tolist() == [False, False, False, False, True, False]


def test_pictures_are_shifted_by_a_few_pixels_and_by_none(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 2, 48, 80, 3), dtype=np.uint8)
    patches = torch.from_numpy(patchify(frames)).float()
    monkeypatch.setattr(torch, "randint", lambda *given: torch.tensor([3, 3]))
    assert torch.equal(see.shifted(patches, WIDE), patches)
    monkeypatch.setattr(torch, "randint", lambda *given: torch.tensor([4, 1]))
    moved = np.pad(frames, ((0, 0), (0, 0), (3, 3), (3, 3), (0, 0)), mode="edge")[:, :, 4:52, 1:81]
    assert torch.equal(see.shifted(patches, WIDE), torch.from_numpy(patchify(moved)).float())


def test_the_seeing_stage_lowers_its_loss(painted: Painted) -> None:
    tower = train.new_model(TOKENIZER, 0).model.visual
    batched, heads = see.BatchedTower(tower), see.TokenHeads()
    schedule = optimiser.Schedule(
        optimiser.make_optimisers(nn.ModuleList([tower, heads]), 0.01, 1e-3), 0.0, 1.0
    )
    patches, labels = (
        torch.from_numpy(array)[:16] for array in (painted.bank.patches, painted.bank.labels)
    )
    generator, losses = torch.Generator().manual_seed(0), []
    for _ in range(10):
        loss = see.see_step(batched, heads, patches, labels, 0, generator)
        loss.backward()  # type: ignore[no-untyped-call]
        schedule.step(0.0)
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    right = see.accuracies(
        batched,
        heads,
        *(
            torch.from_numpy(a)
            for a in (painted.bank.patches, painted.bank.labels, painted.bank.grids)
        ),
    )
    assert set(right) == set(LABELS)


def test_a_banks_missing_shards_are_made_and_the_others_kept(tmp_path: Path) -> None:
    whole = bank_file.build(tmp_path, 4, seed=6, workers=1, shards=2)
    assert (
        len(whole.patches)
        == len(whole.labels)
        == sum(len(group_times(scene)) for scene in whole.scenes)
    )
    kept, lost = sorted(tmp_path.glob("*.pkl"))
    lost.unlink()
    written = kept.stat().st_mtime_ns
    again = bank_file.build(tmp_path, 4, seed=6, workers=1, shards=2)
    assert kept.stat().st_mtime_ns == written
    assert np.array_equal(whole.patches, again.patches) and whole.scenes == again.scenes
    for scene, first in zip(again.scenes, again.first_group, strict=True):
        look = look_of(scene.background_seed)
        count, tokens = len(group_times(scene)), look.grid[0] * look.grid[1]
        assert np.array_equal(
            again.labels[first : first + count, :tokens], scene_labels(scene, look)
        )
        assert (again.labels[first : first + count, tokens:] == -1).all()


# --- tokens, positions and views ----


def frames_of(painted: Painted, chunk: StoredChunk) -> list[Frame]:
    pairs = [
        (painted.frames[group], m.pts_seconds)
        for group, m in zip(chunk.groups, chunk.truth, strict=True)
    ]
    return [
        Frame(image, at + d, 0)
        for pair, at in pairs
        for image, d in zip(pair, (-0.25, 0.25), strict=True)
    ]


def remembered(
    driver: Qwen3VL, painted: Painted, chunks: Sequence[StoredChunk], reach: int
) -> list[KVChunk]:
    """Chunks as the driver has them, each prefilled after the prefix and a few before it, of the
    same row.
    """
    kept: list[KVChunk] = []
    for number, chunk in enumerate(chunks):
        row = number - number % plan.ROW_CHUNKS
        before = kept[max(row, number - reach) : number]
        kept.append(
            driver.prefill(
                driver.encode(frames_of(painted, chunk)), [driver.prefix(), *before], number
            )
        )
    return kept


def clip_of(painted: Painted, numbers: Sequence[int], start: float = 4021.3) -> list[StoredChunk]:
    """Chunks of some scenes, one scene after the other."""
    maker, stage, chunks = (
        maker_of(painted.bank),
        Stage("clip", (4, 4), (1, 9)),
        list[StoredChunk](),
    )
    for number in numbers:
        chunks += maker.scene_chunks(np.random.default_rng(0), number, start, stage)
        start += painted.bank.scenes[number].duration_seconds + 40
    return chunks


def plan_of(
    videos: Sequence[Sequence[StoredChunk]],
    asked: Sequence[tuple[int, Question, list[int]]],
    reach: int,
) -> Any:
    """A plan of videos, and questions as (video, question, its chunks)."""
    rows, looks = Rows(WORDS), Looks(WORDS)
    made = [Video(chunks, [], True) for chunks in videos]
    first_groups, first_chunks = [], []
    for chunks in videos:
        first_groups.append(len(rows.moments))
        first_chunks.append(len(rows.extents))
        for k in range(0, len(chunks), plan.ROW_CHUNKS):
            rows.add(chunks[k : k + plan.ROW_CHUNKS], reach)
    questions = [Asked.of(WORDS, question) for _, question, _ in asked]
    for number, (video, _, picked) in enumerate(asked):
        looks.add(number, made[video], questions[number], picked, first_groups[video])
    most = max(len(video.moments) for video in made)
    arrays = {**rows.arrays(), **looks.arrays(most), **plan._questions(WORDS, questions, looks)}
    groups = np.full((len(videos), most), -1)
    for number, shown in enumerate(made):
        groups[number, : len(shown.moments)] = first_groups[number] + np.arange(len(shown.moments))
    chosen = [np.array([first_chunks[video] + k for k in picked]) for video, _, picked in asked]
    arrays |= {
        "video_groups": groups,
        "owner": np.array([video for video, _, _ in asked]),
        "chosen": plan._padded(chosen, max(len(picked) for picked in chosen), -1),
        "slots": np.arange(-(-int(arrays["chunk_size"].max()) // 8) * 8),
        "some": plan._some_tokens(arrays["visual_places"], np.random.default_rng(0)),
    }
    return as_batch(arrays)


@pytest.mark.parametrize(("numbers", "reach"), [((3, 1), 99), ((3, 1, 0, 2), 1), ((4, 5), 2)])
def test_training_answers_from_recalled_chunks_as_a_session_does(
    small: Small, painted: Painted, numbers: tuple[int, ...], reach: int
) -> None:
    """Square frames and wide ones; the last chunk is exchanged for another one: then it differs."""
    chunks = clip_of(painted, numbers)
    contexts = [[0, 1, len(chunks) - 1], [1], [0, len(chunks) - 1]]
    learner = learner_of(small.network, painted.bank)
    asked = [(0, question, picked) for question, picked in zip(QUESTIONS, contexts, strict=True)]
    batch = plan_of([chunks], asked, reach)
    with torch.no_grad():
        learn._prefill(learner, batch)
        raw = learner.aids.raw_keys_and_values()
        states, _, _ = learn._answer(
            learner, raw, batch, learn.Contexts.of(batch, learner.num_prefix)
        )
        logits = learner.model.lm_head(
            states.flatten(0, 1)[learn._target_rows(batch, learner.num_prefix)]
        )
    question_of = batch["target_places"] // batch["asked_ids"].shape[1]
    kept = remembered(small.driver, painted, chunks, reach)
    for q, (question, picked) in enumerate(zip(QUESTIONS, contexts, strict=True)):
        trained = logits[question_of == q][0]
        exact, other = (
            small.driver.first_logits(
                question.text, [small.driver.prefix(), *(kept[k] for k in indices)]
            )
            for indices in (picked, [*picked[:-1], 2 if picked[-1] != 2 else 0])
        )
        assert gap(exact, trained) < 2e-3 < gap(other, trained)


def test_questions_look_alone_as_a_session_asks_its_index(small: Small, painted: Painted) -> None:
    chunks = clip_of(painted, (3, 1, 4))
    learner = learner_of(small.network, painted.bank)
    batch = plan_of([chunks], [(0, question, [0]) for question in QUESTIONS], 99)
    heads = [Head(learn.RETRIEVAL_LAYER, head) for head in learn.RETRIEVAL_HEADS]
    with torch.no_grad():
        learn._prefill(learner, batch)
        keys = learner.aids.raw_keys_and_values()[learn.RETRIEVAL_LAYER][0]
        learn._look(learner, keys, batch)
        queries = learner.aids.heard["queries"].float()
    kept = remembered(small.driver, painted, chunks, 99)
    visual, groups = batch["visual_places"].long(), batch["video_groups"].long()
    for q, question in enumerate(QUESTIONS):
        asked = small.driver.question_queries(question.text, heads)
        span = slice(learner.num_prefix, int(batch["asked_length"][q]))
        for h, head in enumerate(heads):
            mine = queries[q, span, head.head]
            assert gap(mine, asked[h][-mine.shape[0] :]) < 2e-3
            served = keys[:, head.head // learner.aids.group_size]
            scores = learn._max_sim(
                mine, served, visual, groups, torch.zeros(len(mine), dtype=torch.long)
            )
            by_chunk = scores.amax(0).view(len(chunks), GROUPS_PER_CHUNK).amax(1)
            plain = (
                torch.stack(
                    [
                        (asked[h] @ c.keys[head.layer, head.head // 2, c.visual].T).max()
                        for c in kept
                    ]
                )
                / 48**0.5
            )
            assert gap(by_chunk, plain) < 2e-3


def test_a_plan_can_be_learnt_from_and_is_packed_without_loss(
    painted: Painted, maker: ClipMaker
) -> None:
    model = train.new_model(TOKENIZER, 1)
    learner = learner_of(model, painted.bank)
    stages = (
        Stage("chunk", groups=(2, 4), chunks=(1, 1), questions=8),
        Stage("short", groups=(4, 4), chunks=(2, 3), hidden=0.3, questions=10),
        Stage("video", groups=(4, 4), chunks=(7, 8), questions=2, recalled=True),
    )
    for number, stage in enumerate(stages):
        arrays = make_plan(maker, WORDS, stage, np.random.default_rng(number), 8, 24)
        batch = as_batch(arrays)
        assert all(np.array_equal(batch[name].numpy(), array) for name, array in arrays.items())
        result = learn.learn(learner, batch)
        assert result.loss.isfinite() and len(result.right) == len(batch["family"])
        assert all(bool(loss.isfinite()) for loss in result.aids.values())
        (result.loss + torch.stack(list(result.aids.values())).sum()).backward()  # type: ignore[no-untyped-call]
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        assert grads and all(bool(grad.isfinite().all()) for grad in grads)


def test_aids_reach_what_they_should(painted: Painted, maker: ClipMaker) -> None:
    """A look's groups show what is named; what is told was shown; what is read holds the answer's
    events.
    """
    stage = Stage("video", groups=(4, 4), chunks=(6, 6), questions=3, recalled=True)
    for seed in range(4):
        rng = np.random.default_rng(seed)
        video = plan.draw_video(maker, WORDS, stage, rng, 6)
        looks = Looks(WORDS)
        for number, asked in enumerate(video.questions):
            picked = plan.choose(video, asked, rng)
            assert picked == sorted({*picked}) and picked
            looks.add(number, video, asked, picked, 0)
        for number, place, marks in looks.by_kind["look"]:
            name = dict(video.questions[number].names)[place]
            shown = {
                thing.name
                for k in marks.nonzero()[0]
                for e in video.moments[k].events
                for thing in e.things
            }
            assert name in shown
        for number, place, group, first, _ in looks.told:
            asked = video.questions[number]
            if first >= 0:
                (event,) = video.everything.by_name[dict(asked.names)[place]]
                assert event in video.moments[group].events and event in video.moments[first].events
            else:
                assert video.moments[group].second == asked.question.second
        for number, _, marks in looks.by_kind["read"]:
            events = video.questions[number].question.events
            assert not events or all(
                any(e in events for e in video.moments[k].events) for k in marks.nonzero()[0]
            )


STAR, RING = Thing("star", "red", 0.3, 0.5, 0.5), Thing("ring", "blue", 0.3, 0.5, 0.5)


def test_what_a_word_of_an_answer_is_read_from() -> None:
    star, ring = (
        WorldEvent(float(k), float(k + 1), (thing,)) for k, thing in enumerate((STAR, RING))
    )
    truth = (Moment(0.2, (star,), True), Moment(1.2, (), True), Moment(2.2, (ring,), True))
    video = Video([StoredChunk((0, 1, 2), truth)], [], False)

    def groups(family: str, answer: str, told: int = 0, second: int | None = None) -> list[int]:
        return (
            video.source(Question(family, "?", answer, (star, ring), second), told)
            .nonzero()[0]
            .tolist()
        )

    assert groups("after", "a blue ring") == groups("first_of", "the blue ring") == [2]
    assert groups("first_of", "the red star") == [0] and groups("count_with", "1") == [0, 2]
    assert [groups("caption", "a red star. Then a blue ring", told) for told in (0, 1)] == [
        [0],
        [2],
    ]
    assert groups("what_at", "nothing", second=1) == [1]


def test_a_video_of_look_alikes_asks_whether_the_thing_was_there(painted: Painted) -> None:
    maker = maker_of(painted.bank)
    stage = Stage("video", groups=(4, 4), chunks=(6, 6), questions=1, recalled=True)
    absent = next(
        name for name in (f"{c} {s}" for c in COLOURS for s in SHAPES) if name not in maker.named
    )
    maker.mistaken = {absent: [3], next(iter(n for n in maker.named if "digit" not in n)): [0]}
    answers = set()
    for seed in range(40):
        video = plan.draw_video(maker, WORDS, stage, np.random.default_rng(seed), 6)
        doubted = [
            a.question for a in video.questions[-plan.DOUBTED :] if a.question.family == "presence"
        ]
        answers |= {(absent in q.text, q.answer) for q in doubted}
        assert all((question.answer == "yes") == bool(question.events) for question in doubted)
    assert (True, "no") in answers and (True, "yes") not in answers and (False, "yes") in answers


def test_scenes_are_taken_for_a_thing_and_never_show_it(painted: Painted, maker: ClipMaker) -> None:
    learner = learner_of(train.new_model(TOKENIZER, 1), painted.bank)
    found = lookalikes.mistaken(learner, maker, WORDS)
    assert len(found) == 64
    for name, numbers in found.items():
        shown = maker.named.get(name, [])
        assert set(shown).isdisjoint(numbers[: len(painted.bank.scenes) - len(shown)])


# --- pruned clips ----


def worth_of(painted: Painted, network: Any) -> Worth:
    bank = painted.bank
    batched = see.BatchedTower(network.model.visual)
    patches, grids = torch.from_numpy(bank.patches), torch.from_numpy(bank.grids)
    return Worth.of(patches, see.features(batched, patches, grids)[0], grids, bank.first_group)


def test_what_a_pruner_leaves_is_news_and_inside_its_grid(painted: Painted, small: Small) -> None:
    worth, bank = worth_of(painted, small.network), painted.bank
    assert worth.news[:, bank.first_group].all() and not worth.news.all()
    assert (worth.news[0] >= worth.news[2]).mean() > 0.9
    for group, grid in enumerate(bank.grids.tolist()):
        tokens = GRIDS[grid][0] * GRIDS[grid][1]
        assert sorted(worth.order[group]) == list(range(TOKENS_PER_GROUP))
        assert worth.order[group, :tokens].max() < tokens
    still = next(
        k
        for k in range(1, len(bank.patches))
        if np.array_equal(bank.patches[k], bank.patches[k - 1])
    )
    assert not worth.news[:, still].any()


def test_pruned_clips_can_be_learnt_from(painted: Painted) -> None:
    model = train.new_model(TOKENIZER, 1)
    maker = maker_of(painted.bank, worth_of(painted, model))
    learner = learner_of(model, painted.bank)
    for stage in (
        Stage("two", groups=(4, 4), chunks=(2, 3), pruned=1.0, questions=6),
        Stage("video", groups=(4, 4), chunks=(4, 4), pruned=1.0, questions=3, recalled=True),
    ):
        batch = as_batch(make_plan(maker, WORDS, stage, np.random.default_rng(1), 6, 20))
        assert int((batch["visual_places"] >= 0).sum(1).max()) <= 10
        result = learn.learn(learner, batch)
        assert all(bool(loss.isfinite()) for loss in (result.loss, *result.aids.values()))


# --- training ----


def test_matrices_of_one_shape_are_made_orthogonal_together_as_torchs_muon_does_one_by_one() -> (
    None
):
    generator = torch.Generator().manual_seed(0)
    starts = [
        torch.randn(6, 4, generator=generator),
        torch.randn(6, 4, generator=generator),
        torch.randn(3, 5, generator=generator),
    ]
    ours, theirs = ([nn.Parameter(start.clone()) for start in starts] for _ in range(2))
    mine = optimiser.BatchedMuon(ours, lr=0.02)
    stock = torch.optim.Muon(
        theirs, lr=0.02, momentum=0.95, weight_decay=0.01, adjust_lr_fn="original"
    )
    for _ in range(3):
        grads = [torch.randn(start.shape, generator=generator) for start in starts]
        for one, other, grad in zip(ours, theirs, grads, strict=True):
            one.grad, other.grad = grad.clone(), grad.clone()
        mine.step()
        stock.step()  # type: ignore[no-untyped-call]
    assert all(gap(one, other) < 2e-3 for one, other in zip(ours, theirs, strict=True))
    assert gap(ours[0], starts[0]) > 1e-2


def test_the_rate_rises_stays_and_ends_low() -> None:
    schedule = optimiser.Schedule([], warm_up=0.1, fall_from=0.5)
    shares = [schedule.share(done) for done in (0.0, 0.05, 0.1, 0.4, 0.75, 1.0)]
    assert shares[:2] == sorted(shares[:2]) and shares[2] == shares[3] == 1.0
    assert shares[4] == pytest.approx(0.5) and shares[5] == optimiser.LEAST_RATE


@pytest.mark.parametrize("curriculum", [train.FROM_NOTHING, train.FROM_WEIGHTS])
def test_a_curriculum_covers_the_whole_training_and_ends_at_full_length(
    curriculum: train.Curriculum,
) -> None:
    assert sum(share for share, _ in curriculum) == pytest.approx(1)
    names = [[stage.name for stage, _ in train.stages_at(curriculum, p / 100)] for p in range(100)]
    assert names[0][0] == "glance" and "long" in names[-1]
    assert train.stages_at(curriculum, 1.0) == train.stages_at(curriculum, 0.99)


def test_earlier_weights_are_taken_over_word_by_word(small: Small) -> None:
    words = json.loads((small.folder / "tokenizer.json").read_text())["model"]["vocab"]
    model = train.new_model(TOKENIZER, 9)
    before = model.state_dict()["model.visual.blocks.0.mlp.linear_fc1.weight"].clone()
    train.warm_start(model, TOKENIZER, small.folder)
    rows, old = model.get_input_embeddings().weight, small.network.get_input_embeddings().weight
    number = TOKENIZER.get_vocab()["circle"]
    assert words["circle"] == number and gap(rows[number], old[number]) < 1e-2
    assert gap(model.state_dict()["model.visual.blocks.0.mlp.linear_fc1.weight"], before) > 1e-3


def test_a_few_steps_from_the_command_line_leave_states_and_a_model(tmp_path: Path) -> None:
    train.main(
        minutes=5.0,
        folder=tmp_path / "run",
        out=tmp_path / "out",
        chunks=8,
        workers=1,
        see_batch=4,
        step_chunks=2,
        step_questions=4,
        most_steps=2,
        bank=None,
        start=None,
        resume=None,
        see_share=0.5,
        rate=1.0,
        seed=1,
    )
    logging.getLogger().handlers.clear()
    assert {"last.pt", "mean.pt", "tower.pt"} <= {
        path.name for path in (tmp_path / "run").iterdir()
    }
    assert isinstance(load(tmp_path / "out", device="cpu"), Qwen3VL)


# --- the checkpoint ----


def test_the_mean_of_saved_states_becomes_a_checkpoint(small: Small, tmp_path: Path) -> None:
    states = []
    for seed in (4, 5):
        network = train.new_model(TOKENIZER, seed)
        states.append(tmp_path / f"{seed}.pt")
        train.save_state(states[-1], network.state_dict(), nn.Linear(1, 1))
    finish.main(states, tmp_path / "out")
    name = "model.language_model.norm.weight", "model.language_model.embed_tokens.weight"
    made = load_file(tmp_path / "out" / "model.safetensors")
    kept = [torch.load(path, weights_only=True)["model"] for path in states]
    for part in name:
        mean = (kept[0][part].float() + kept[1][part].float()) / 2
        assert gap(made[part].float(), mean) < 0.01 * float(mean.abs().max())
    assert load(tmp_path / "out", device="cpu").num_layers == small.driver.num_layers


def test_a_saved_model_comes_back_through_the_loader_as_it_was(small: Small) -> None:
    tensors = small.network.state_dict()
    again = load(small.folder, device="cpu")
    assert isinstance(again, Qwen3VL)
    assert again.model_id == small.driver.model_id and again.dtype == torch.float32
    assert (
        gap(
            again._decoder._model.embed_tokens.weight,
            tensors["model.language_model.embed_tokens.weight"],
        )
        == 0
    )
    assert (
        gap(
            again._visual.blocks[3].mlp.linear_fc1.weight,
            tensors["model.visual.blocks.3.mlp.linear_fc1.weight"],
        )
        == 0
    )
    assert again._prompt.tokenizer.get_vocab() == TOKENIZER.get_vocab()
    assert (again.num_layers, again.num_heads, again.num_kv_heads, again.frames_per_group) == (
        6,
        6,
        3,
        2,
    )
    assert again._pixels == SPEC
    size = sum(path.stat().st_size for path in small.folder.iterdir())
    assert size < 16 << 20


def test_a_saved_model_says_how_it_wants_to_be_used_and_can_be_asked(small: Small) -> None:
    config = Config().overridden(recommended_settings(str(small.folder)))
    assert (config.read.fps, config.memory.chunk_frames, config.answer.dialogue_turns) == (
        2.0,
        8,
        0,
    )
    picture = np.full((64, 64, 3), 90, np.uint8)
    groups = small.driver.encode([Frame(picture, k / 2, k) for k in range(8)])
    assert [group.grid for group in groups] == [(GRID, GRID)] * 4
    prefix = small.driver.prefix()
    context = [prefix, small.driver.prefill(groups, [prefix], 0)]
    said = "".join(
        small.driver.answer("What is shown?", context, (), AnswerConfig(max_new_tokens=5))
    )
    assert set(TOKENIZER(said).input_ids) <= set(range(len(TOKENIZER)))
    assert said == "".join(
        small.driver.answer("what is SHOWN", context, (), AnswerConfig(max_new_tokens=5))
    )
