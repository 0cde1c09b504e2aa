"""What the demo model is trained on is what the driver will give it: pictures, tower, tokens, positions and views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim import Muon

from config import AnswerConfig, Config, PruneConfig
from keyframes.pruner import NoveltyPruner
from memory.chunk import KVChunk
from models.base import Head, VisualGroup
from models.cache_layout import concat_positions
from models.checkpoint import recommended_settings
from models.demo.architecture import GRID, HIDDEN, PATCH, SIDE, TOKENS_PER_GROUP
from models.demo.tokenizer import CHAT_TEMPLATE, build_tokenizer
from models.demo.world import COLOURS, SHAPES, Scene, Thing, WorldEvent
from models.loading import load
from models.pixels import PixelSpec, fit_size, normalise
from models.pixels import patchify as stock_patchify
from models.qwen3_vl import Prompt, Qwen3VL
from streaming.frames import Frame
from training import aids, bind, lookalikes, optimiser, recalled, see, train
from training import bank as bank_file
from training.bank import LABELS, Bank, scene_frames, scene_labels
from training.bind import CLIP, PREFIX_CHUNK, ClipMaker, Stage, StoredChunk, TokenRow
from training.optimiser import mixed_precision
from training.questions import Question
from training.scenes import GROUPS_PER_CHUNK, Moment, group_times, moments, random_scene
from training.see import BatchedTower, patchify
from training.unchanged import Worth

TOKENIZER = build_tokenizer()
SPEC = PixelSpec(PATCH, 2, 2, min_pixels=2 * SIDE * SIDE, max_pixels=2 * SIDE * SIDE, budget_frames=2)
QUESTIONS = [
    Question("colour", "What color is the ring?", "cyan"),
    Question("when", "When does the red star appear?", "at 4021 seconds"),
    Question("other", "How are you?", "no"),
]


@dataclass(frozen=True, eq=False)
class Small:
    """A seeded network of the demo's shape, as rounded by its checkpoint, and the same through the driver."""

    network: Any
    driver: Qwen3VL
    folder: Path


@pytest.fixture(autouse=True)
def _rough_muon(monkeypatch: pytest.MonkeyPatch) -> None:
    """One Newton-Schulz iteration for five: they are done in bfloat16, which takes long where a CPU emulates it."""
    monkeypatch.setattr(optimiser, "Muon", partial(Muon, ns_steps=1))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    folder = tmp_path_factory.mktemp("demo") / "weights"
    saved = train.new_model(TOKENIZER, 3)
    train.save(saved, TOKENIZER, folder)
    network = train.new_model(TOKENIZER, 0)  # afresh, since rounding a network rounds its rotary frequencies too
    network.load_state_dict(saved.state_dict())
    driver = load(folder, device="cpu")
    assert isinstance(driver, Qwen3VL)
    return Small(network.eval().requires_grad_(False), driver, folder)


@pytest.fixture(scope="module")
def bank() -> Bank:
    rng = np.random.default_rng(1)
    scenes = [random_scene(rng, length) for length in (1, 2, 1, 3)]
    first = np.cumsum([0, *(len(group_times(scene)) for scene in scenes[:-1])]).tolist()
    frames = np.concatenate([scene_frames(scene, rng) for scene in scenes])
    return Bank(frames, np.concatenate([scene_labels(scene) for scene in scenes]), scenes, first)


@pytest.fixture(scope="module")
def maker(bank: Bank) -> ClipMaker:
    return ClipMaker(bank.scenes, bank.first_group, TOKENIZER)


def stored(scene: Scene, first: int, start: float, hidden: Sequence[int] = ()) -> list[StoredChunk]:
    """A scene's chunks, starting at a time."""
    truth = moments(scene, start)
    cuts = range(0, len(truth), GROUPS_PER_CHUNK)
    return [
        StoredChunk(tuple(range(first + c, first + c + 4)), tuple(truth[c : c + 4]), number in hidden)
        for number, c in enumerate(cuts)
    ]


def clip_of(bank: Bank, hidden: Sequence[int] = ()) -> list[StoredChunk]:
    """Three chunks far apart in one day."""
    return stored(bank.scenes[3], bank.first_group[3], 45_321.3, hidden)


def features_of(network: Any, bank: Bank) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        embeddings, deepstack = BatchedTower(network.model.visual)(patchify(torch.from_numpy(bank.frames)))
    return embeddings, deepstack


def gap(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


@pytest.mark.parametrize(
    ("able", "half"), [({"avx512_bf16": True}, True), ({"bf16": True}, True), ({"avx2": True}, False)]
)
def test_steps_are_in_half_precision_where_the_cpu_has_it(
    able: dict[str, bool], half: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    with mixed_precision():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == (torch.bfloat16 if half else torch.float32)


# --- seeing -----------------------------------------------------------------------------------------------------------


def test_patches_are_those_of_the_models_preprocessing(bank: Bank) -> None:
    ours = patchify(torch.from_numpy(bank.frames[:5]))
    for group, patches in zip(bank.frames[:5], ours, strict=True):
        pictures = torch.from_numpy(group).permute(0, 3, 1, 2)
        assert gap(stock_patchify(normalise(pictures, SPEC), SPEC), patches) < 1e-6
    moved = next(k for k in range(len(bank.frames)) if not np.array_equal(bank.frames[k, 0], bank.frames[k, 1]))
    swapped = torch.from_numpy(bank.frames[moved : moved + 1, ::-1].copy())
    assert gap(patchify(swapped), patchify(torch.from_numpy(bank.frames[moved : moved + 1]))) > 0.01


def test_a_square_picture_of_any_size_comes_to_the_size_of_training() -> None:
    assert all(fit_size(side, side, SPEC) == (SIDE, SIDE) for side in range(16, 1100))


def test_the_batched_tower_is_the_stock_tower(small: Small, bank: Bank) -> None:
    tower = small.network.model.visual
    patches = patchify(torch.from_numpy(bank.frames[:6]))
    with torch.no_grad():
        embeddings, deepstack = BatchedTower(tower)(patches)
        grids = torch.tensor([[1, SIDE // PATCH, SIDE // PATCH]] * 6)
        stock = tower(patches.flatten(0, 1), grid_thw=grids)
        patches[4, 9] += 1
        touched, _ = BatchedTower(tower)(patches)
    assert embeddings.shape == deepstack.shape == (6, TOKENS_PER_GROUP, HIDDEN)
    assert gap(embeddings.flatten(0, 1), stock.pooler_output) < 1e-5
    assert gap(deepstack.flatten(0, 1), stock.deepstack_features[0]) < 1e-5
    differs = (touched - embeddings).abs().amax(dim=(1, 2)) > 1e-5
    assert differs.tolist() == [False, False, False, False, True, False]


def test_the_seeing_stage_learns_and_is_done_once_done(small: Small, bank: Bank, tmp_path: Path) -> None:
    repeats = 560 // len(bank.frames) + 1
    large = Bank(np.concatenate([bank.frames] * repeats), np.concatenate([bank.labels] * repeats), [], [])
    tower = train.new_model(TOKENIZER, 0).model.visual
    (last,) = see.train_tower(tower, large, tmp_path / "see.pt", steps=14, batch=8)
    chance = sum(np.log(classes) for classes in LABELS.values())
    assert last[0] == 14 and last[1] < 0.85 * chance
    assert set(last[2]) == set(LABELS)
    assert list(see.train_tower(tower, large, tmp_path / "see.pt", steps=14, batch=8)) == []


def test_a_banks_missing_shards_are_made_and_the_others_kept(tmp_path: Path) -> None:
    whole = bank_file.build(tmp_path, 4, seed=6, workers=1, shards=2)
    assert len(whole.frames) == len(whole.labels) == sum(len(group_times(scene)) for scene in whole.scenes)
    kept, lost = sorted(tmp_path.glob("*.pkl"))
    lost.unlink()
    written = kept.stat().st_mtime_ns
    again = bank_file.build(tmp_path, 4, seed=6, workers=1, shards=2)
    assert kept.stat().st_mtime_ns == written
    assert np.array_equal(whole.frames, again.frames) and whole.scenes == again.scenes
    for scene, first in zip(again.scenes, again.first_group, strict=True):
        count = len(group_times(scene))
        assert np.array_equal(again.labels[first : first + count], scene_labels(scene))


# --- tokens, positions and views --------------------------------------------------------------------------------------


def groups_of(chunk: StoredChunk) -> list[VisualGroup]:
    none = torch.zeros(TOKENS_PER_GROUP, HIDDEN)
    return [VisualGroup(none, (none,), (GRID, GRID), m.pts_seconds, 0.0, 0.0) for m in chunk.truth]


@pytest.mark.parametrize("hidden", [(), (1,), (0,), (0, 2)])
def test_a_sequence_is_what_the_driver_writes_for_what_the_question_sees(
    maker: ClipMaker, bank: Bank, hidden: tuple[int, ...]
) -> None:
    chunks = clip_of(bank, hidden)
    row, prompt = maker.sequence(chunks, QUESTIONS), Prompt(TOKENIZER, CHAT_TEMPLATE)
    scripts = [prompt.build_inputs(groups_of(chunk)) for chunk in chunks if not chunk.hidden]
    prefix = prompt.prefix()
    positions, extent = concat_positions([script.layout for script in scripts])
    seen = [n for n in range(len(row.ids)) if row.owner[n] == CLIP and row.seen[n]]
    assert [row.ids[n] for n in seen] == prefix + [token for script in scripts for token in script.tokens]
    places = torch.tensor([row.positions[n] for n in seen]).T
    assert torch.equal(places[:, : len(prefix)], torch.arange(len(prefix)).expand(3, -1))
    assert torch.equal(places[:, len(prefix) :], positions + len(prefix))
    for number, question in enumerate(QUESTIONS):
        mine = [n for n in range(len(row.ids)) if row.owner[n] == number]
        asked = prompt.question(question.text, ())
        answer = [*TOKENIZER(question.answer).input_ids, TOKENIZER.eos_token_id]
        assert [row.ids[n] for n in mine] == asked + answer[:-1]
        assert [row.positions[n] for n in mine] == [(len(prefix) + extent + k,) * 3 for k in range(len(mine))]
        targets = [row.targets[n] for n in mine]
        assert targets == [-100] * (len(asked) - 1) + answer


def test_a_hidden_chunk_stood_right_before_its_successor(maker: ClipMaker, bank: Bank) -> None:
    row = maker.sequence(clip_of(bank, (1,)), QUESTIONS)
    ends, starts = (
        [edge(row.positions[n][0] for n in range(len(row.ids)) if row.chunk[n] == c and row.owner[n] == CLIP)
         for c in range(3)]
        for edge in (max, min)
    )  # fmt: skip
    assert ends[1] + 1 == starts[2] == ends[0] + 1


def test_who_sees_whom(maker: ClipMaker, bank: Bank) -> None:
    row = maker.sequence(clip_of(bank, (1,)), QUESTIONS)
    for reach in (0, 1, 99):
        view = bind.view(row, reach)
        rng = np.random.default_rng(reach)
        pairs = rng.integers(len(row.ids), size=(4000, 2)).tolist()
        assert all(bool(view[n, m]) == sees(row, n, m, reach) for n, m in pairs)
        assert view.diagonal().all()
    question = row.owner.index(1)
    for m in range(question):
        if row.owner[m] == 0 or row.chunk[m] == 1:
            assert not view[question, m], "a question saw another one, or what is hidden"
    assert view[question, row.chunk.index(0)] and view[question, row.chunk.index(2)] and view[question, 0]


def sees(row: TokenRow, n: int, m: int, reach: int) -> bool:
    """The rule in words: never ahead; clip sees prefix and the `reach` chunks before; questions see what is shown, and
    themselves."""
    if m > n:
        return False
    if row.owner[n] != CLIP:
        return row.owner[m] == row.owner[n] or (row.owner[m] == CLIP and row.seen[m])
    return row.owner[m] == CLIP and (row.chunk[m] == PREFIX_CHUNK or row.chunk[n] - row.chunk[m] <= reach)


def test_padding_changes_nothing(small: Small, maker: ClipMaker, bank: Bank) -> None:
    short = (maker.sequence(clip_of(bank)[:1], QUESTIONS[:1]), QUESTIONS[:1], 99)
    long = (maker.sequence(clip_of(bank), QUESTIONS), QUESTIONS, 99)
    features = features_of(small.network, bank)
    with torch.no_grad():
        alone = bind.answer_logits(small.network, *features, bind.collate([short]))
        padded = bind.answer_logits(small.network, *features, bind.collate([short, long]))
    assert gap(alone, padded[: len(alone)]) < 1e-4


def frames_of(bank: Bank, chunk: StoredChunk) -> list[Frame]:
    pairs = [(bank.frames[group], m.pts_seconds) for group, m in zip(chunk.groups, chunk.truth, strict=True)]
    return [Frame(image, at + d, 0) for pair, at in pairs for image, d in zip(pair, (-0.25, 0.25), strict=True)]


def stream(driver: Qwen3VL, bank: Bank, chunks: Sequence[StoredChunk]) -> list[KVChunk]:
    """The clip through the driver, everything in view."""
    context = [driver.prefix()]
    for number, chunk in enumerate(chunks):
        context.append(driver.prefill(driver.encode(frames_of(bank, chunk)), context, number))
    return context


def test_training_sees_the_numbers_that_the_driver_answers_from(small: Small, maker: ClipMaker, bank: Bank) -> None:
    chunks = clip_of(bank)
    batch = bind.collate([(maker.sequence(chunks, QUESTIONS), QUESTIONS, 99)])
    with torch.no_grad():
        logits = bind.answer_logits(small.network, *features_of(small.network, bank), batch)
    asked = batch.owner[batch.targets != -100]
    context = stream(small.driver, bank, chunks)
    for number, question in enumerate(QUESTIONS):
        trained = logits[asked == number][0]
        assert gap(small.driver.first_logits(question.text, context), trained) < 1e-4
        assert gap(small.driver.first_logits(question.text, [*context[:2], *context[3:]]), trained) > 1e-3
        assert gap(small.driver.first_logits(question.text.replace("?", " red"), context), trained) > 1e-3


# --- aids -------------------------------------------------------------------------------------------------------------

STAR, RING = Thing("star", "red", 0.3, 0.5, 0.5), Thing("ring", "blue", 0.3, 0.5, 0.5)


def test_what_a_word_of_an_answer_is_read_from() -> None:
    star, ring = (WorldEvent(float(k), float(k + 1), (thing,)) for k, thing in enumerate((STAR, RING)))
    moments = [Moment(0.2, (star,), True), Moment(1.2, (), True), Moment(2.2, (ring,), True)]

    def groups(family: str, answer: str, told: int = 0, second: int | None = None) -> list[int]:
        asked = Question(family, "?", answer, (star, ring), second)
        return aids.source(moments, asked, told).nonzero()[0].tolist()

    assert groups("after", "a blue ring") == groups("first_of", "the blue ring") == [2]
    assert groups("first_of", "the red star") == [0] and groups("count_with", "1") == [0, 2]
    assert [groups("caption", "a red star then a blue ring", told) for told in (0, 1)] == [[0], [2]]
    assert groups("what_at", "nothing", second=1) == [1]


def test_a_read_is_the_attention_that_the_model_pays(maker: ClipMaker, bank: Bank) -> None:
    model = train.new_model(TOKENIZER, 1)
    model.set_attn_implementation("eager")
    llm = model.model.language_model
    listening = aids.Aids(llm)
    weights: list[Tensor] = []
    llm.layers[aids.READ_LAYER].self_attn.register_forward_hook(lambda module, given, out: weights.append(out[1]))
    stage = Stage("two", groups=(4, 4), chunks=(2, 2), batch=2)
    batch = bind.draw_batch(maker, stage, np.random.default_rng(1))
    with torch.no_grad():
        padding = torch.zeros(batch.allowed.shape).masked_fill(~batch.allowed, float("-inf"))
        bind.answer_logits(model, *features_of(model, bank), replace(batch, allowed=padding))
        loss, _ = listening.losses(batch)
    paid = []
    for b in range(len(batch.rows)):
        places, marks = aids.read_targets(batch, b)
        wanted = torch.from_numpy(marks)
        useful = wanted.any(dim=1)
        paid += [-(weights[0][b, h, places] * wanted).sum(-1)[useful].log() for h in aids.READ_HEADS]
    assert gap(loss["read"], torch.cat(paid).mean()) < 1e-4
    assert gap(loss["read"], torch.cat(paid[:1]).mean()) > 1e-4


def worth_of(bank: Bank, every: bool = False) -> Worth:
    """What is worth keeping of the bank, the tokens that stand out drawn at random; every: all groups are news."""
    noise = torch.randn(len(bank.frames), TOKENS_PER_GROUP, 8, generator=torch.Generator().manual_seed(0))
    worth = Worth.of(bank.frames, noise, bank.first_group)
    return replace(worth, news=worth.news | every)


def test_what_a_pruner_keeps_of_the_bank_is_what_it_would_keep_of_the_pictures(bank: Bank) -> None:
    worth = worth_of(bank)
    assert worth.news[:, bank.first_group].all() and 0 < worth.news.mean() < 1
    borders = [*bank.first_group, len(bank.frames)]
    found = []
    for start, stop in pairwise(borders):
        pruner = NoveltyPruner(PruneConfig("novelty"))
        images, seconds = [[*frames] for frames in bank.frames[start:stop]], [float(k) for k in range(stop - start)]
        found += pruner.select_groups(images, seconds)
    assert np.mean(worth.news[1] == np.array(found)) > 0.9  # another measure of change, at another threshold
    assert np.array_equal(np.sort(worth.order), np.tile(np.arange(TOKENS_PER_GROUP), (len(bank.frames), 1)))


def test_a_pruned_clip_keeps_the_groups_with_news_and_the_places_of_their_tokens(bank: Bank) -> None:
    worth = worth_of(bank)
    none = Worth(worth.news & False, worth.order)
    stage = Stage("two", groups=(4, 4), chunks=(2, 2), batch=1)
    makers = [ClipMaker(bank.scenes, bank.first_group, TOKENIZER, kept) for kept in (none, worth_of(bank, every=True))]
    chunks = makers[0].chunks(np.random.default_rng(2), stage)
    still, every = (maker.thinned(np.random.default_rng(3), chunks, tokens=5) for maker in makers)
    runs = 1 + sum(one != other + 1 for other, one in pairwise(g for chunk in chunks for g in chunk.groups))
    assert sum(len(chunk.groups) for chunk in still) == runs, "only what does not follow the group before"
    assert [chunk.groups for chunk in every] == [chunk.groups for chunk in chunks]
    whole, less = makers[1].sequence(chunks, []), makers[1].sequence(every, [])
    known = dict(zip(whole.feature, whole.positions, strict=True))
    for feature, position in zip(less.feature, less.positions, strict=True):
        assert feature < 0 or known[feature] == position
    assert less.positions[-1] == whole.positions[-1]
    assert sum(feature >= 0 for feature in less.feature) == 5 * 8


def test_a_recall_step_of_pruned_videos_sees_only_what_is_left(bank: Bank) -> None:
    maker = ClipMaker(bank.scenes, bank.first_group, TOKENIZER, worth_of(bank))
    stage = Stage("few", groups=(4, 4), chunks=(4, 4), questions=8, recalled=True, pruned=1.0)
    drawn = recalled.draw(maker, stage, np.random.default_rng(1), 4, tokens=6)
    assert [len(chunk.groups) for chunk in drawn.chunks] == [4] * 4
    assert all(len(places) == 6 for chunk in drawn.chunks for places in chunk.kept or ())
    model = train.new_model(TOKENIZER, 1)
    learner = aids.Learner(model, aids.Aids(model.model.language_model), maker, features_of(model, bank))
    done = recalled.step(learner, stage, np.random.default_rng(1))
    assert all(bool(loss.isfinite()) for loss in done.helped.values()) and len(done.logits)


def test_aids_listen_to_pruned_clips(bank: Bank) -> None:
    maker = ClipMaker(bank.scenes, bank.first_group, TOKENIZER, worth_of(bank))
    model = train.new_model(TOKENIZER, 1)
    listening = aids.Aids(model.model.language_model)
    stage = Stage("two", groups=(4, 4), chunks=(2, 2), pruned=1.0, batch=2)
    batch = bind.draw_batch(maker, stage, np.random.default_rng(1))
    groups = aids.groups_of_visual_tokens(batch)
    assert len(groups) == len(batch.features) < 16 * 16 and len(set(groups.tolist())) < 16
    bind.answer_logits(model, *features_of(model, bank), batch)
    losses, _ = listening.losses(batch)
    torch.autograd.backward(aids.sum_of(losses.values()))
    assert {name: float(loss) for name, loss in losses.items() if not loss.isfinite()} == {}
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_a_time_in_a_question_fetches_the_group_of_that_time(maker: ClipMaker) -> None:
    stage = Stage("two", groups=(4, 4), chunks=(2, 2), batch=4, questions=20)
    batch = bind.draw_batch(maker, stage, np.random.default_rng(3))
    fetched = 0
    for b, row in enumerate(batch.rows):
        places, wanted = aids.fetch_targets(batch, b)
        for place, mine in zip(places, wanted, strict=True):
            second = batch.questions[b][row.owner[place]].second
            assert {row.moments[row.moment[n]].second for n in mine.nonzero()[0]} == {second}
            assert row.ids[place] == maker.seconds
            fetched += 1
    assert fetched == sum(q.second is not None for asked in batch.questions for q in asked) > 0


# --- recall -----------------------------------------------------------------------------------------------------------


def remembered(driver: Qwen3VL, bank: Bank, chunks: Sequence[StoredChunk], reach: int) -> list[KVChunk]:
    """Chunks as the driver has them, each prefilled behind the prefix and a few before it, of the same row."""
    kept: list[KVChunk] = []
    for number, chunk in enumerate(chunks):
        row = number - number % recalled.ROW_CHUNKS
        before = kept[max(row, number - reach) : number]
        groups = driver.encode(frames_of(bank, chunk))
        kept.append(driver.prefill(groups, [driver.prefix(), *before], number))
    return kept


def test_training_answers_from_recalled_chunks_as_a_session_does(small: Small, maker: ClipMaker, bank: Bank) -> None:
    stage = Stage("video", groups=(4, 4), chunks=(8, 8), recalled=True)
    videos = [
        recalled.Video.of(maker.chunks(np.random.default_rng(seed), stage, 8), QUESTIONS[:count])
        for seed, count in ((1, 2), (2, 1))
    ]
    made = recalled.arrange(maker, videos, [99, 99])
    contexts = [[0, 1, 5], [2, 6, 7], [7]]
    listening = aids.Aids(small.network.model.language_model)
    with torch.no_grad():
        raw = recalled.prefill(small.network, listening, features_of(small.network, bank), made)
        logits, _, _ = recalled.answer(small.network, raw, made, recalled.assemble(made, contexts))
    place = (made.asked.targets != -100).nonzero()[:, 0]
    for q, (video, question, _) in enumerate(made.questions):
        chunks = remembered(small.driver, bank, video.chunks, 99)
        trained = logits[place == q][0]
        exact, other = (
            small.driver.first_logits(question.text, [small.driver.prefix(), *(chunks[k] for k in indices)])
            for indices in (contexts[q], [*contexts[q][:-1], 4])
        )
        assert gap(exact, trained) < 1e-4 < 1e-3 < gap(other, trained)


def test_questions_look_alone_as_a_session_asks_its_index(small: Small, maker: ClipMaker, bank: Bank) -> None:
    stage = Stage("video", groups=(4, 4), chunks=(7, 7), recalled=True)
    videos = [recalled.Video.of(maker.chunks(np.random.default_rng(3), stage, 7), QUESTIONS)]
    made = recalled.arrange(maker, videos, [99])
    listening = aids.Aids(small.network.model.language_model)
    with torch.no_grad():
        raw = recalled.prefill(small.network, listening, features_of(small.network, bank), made)
        _, _, found = recalled.look(small.network, listening, raw[aids.RETRIEVAL_LAYER][0], made)
    chunks = remembered(small.driver, bank, videos[0].chunks, 99)
    heads = [Head(aids.RETRIEVAL_LAYER, head) for head in aids.RETRIEVAL_HEADS]
    for (video, question, _), scores in zip(made.questions, found.view(3, 2, 7, -1).amax(-1), strict=True):
        assert video is videos[0] and scores.shape == (len(heads), 7)
        queries = small.driver.question_queries(question.text, heads)
        for number, chunk in enumerate(chunks):
            keys = [chunk.keys[h.layer, h.head // 2, chunk.visual] for h in heads]
            plain = (
                torch.stack([(q @ k.T).max() for q, k in zip(queries, keys, strict=True)]) / keys[0].shape[-1] ** 0.5
            )
            assert gap(plain, scores[:, number]) < 1e-4
    assert gap(scores[:, 0], scores[:, 1]) > 1e-3


def test_a_context_holds_the_answer_and_what_was_planned(maker: ClipMaker) -> None:
    stage = Stage("video", groups=(4, 4), chunks=(9, 9), questions=40, recalled=True)
    rng = np.random.default_rng(5)
    video = recalled.draw(maker, stage, rng, 9)
    assert not {q.family for q in video.questions} & set(recalled.WHOLE_VIDEO)
    assert len(video.questions) > 5
    for seed, question in enumerate(video.questions):
        scores = torch.randn(2, 9, generator=torch.Generator().manual_seed(seed))
        chunks = recalled.chosen(video, question, scores, rng)
        assert chunks == sorted({*chunks}) and 1 <= len(chunks) <= 9
        moments = [m for k in chunks for m in video.chunks[k].truth]
        if question.second is not None:
            assert question.second in [m.second for m in moments]
        shown = {event for m in moments for event in m.events}
        assert shown.issuperset(question.events)


def test_what_is_read_and_told_in_a_recalled_context(maker: ClipMaker) -> None:
    stage = Stage("video", groups=(4, 4), chunks=(8, 8), questions=60, recalled=True)
    drawn = (recalled.draw(maker, stage, np.random.default_rng(seed), 8) for seed in range(50))
    video = next(video for video in drawn if any(question.family == "after" for question in video.questions))
    made = recalled.arrange(maker, [video], [2])
    everything = recalled.assemble(made, [list(range(8))] * len(made.questions))
    reading = recalled._Reading(made, everything)
    assert reading.told and reading.names and reading.times and len(reading.answers) > len(made.questions)
    for told in reading.told:
        _, question, row = made.questions[told.question]
        moment, place = video.moments[told.group], told.place + made.prefix_tokens
        if told.first is None:
            assert moment.second == question.second and row.ids[place] == maker.seconds
        else:
            event = video.facts.once[dict(row.names)[place]]
            assert event in moment.events and video.facts.first[event] is video.moments[told.first]
        if told.next is not None:
            assert question.family == "after" and question.events[1] in video.moments[told.next].events
    assert any(told.next is not None for told in reading.told)
    context = everything.tokens.shape[1]
    for q, _, marks in reading.answers:
        groups = {video.moments[k] for k in everything.moments[q][marks[:context]] if k >= 0}
        events = set(made.questions[q][1].events)
        assert all(events.intersection(moment.events) for moment in groups) or not events


def test_scenes_are_taken_for_a_thing_by_their_best_token_and_never_show_it(maker: ClipMaker, bank: Bank) -> None:
    model = train.new_model(TOKENIZER, 1)
    learner = aids.Learner(model, aids.Aids(model.model.language_model), maker, features_of(model, bank))
    found = lookalikes.mistaken(learner)
    assert len(found) == 64
    for name, numbers in found.items():
        assert set(maker.named.get(name, [])).isdisjoint(numbers[: 4 - len(maker.named.get(name, []))])
    name = next(name for name in found if name not in maker.named)
    with torch.no_grad(), mixed_precision():
        (query,) = lookalikes._queries(learner, [name])
        best = []
        for number in range(len(bank.scenes)):
            chunks = maker.scene_chunks(np.random.default_rng(0), number, 0.0, lookalikes.WHOLE)
            batch = bind.collate([(maker.sequence(chunks, []), [], lookalikes.REACH)])
            bind.through_layers(model, *learner.features, batch)
            keys = learner.aids.heard["keys"][batch.visual].float()
            heads = [keys[:, head // learner.aids.group_size] for head in aids.RETRIEVAL_HEADS]
            best.append(sum(float((head @ q).max()) for head, q in zip(heads, query, strict=True)))
    assert found[name] == sorted(range(4), key=lambda number: -best[number])


def test_a_video_of_look_alikes_asks_whether_the_thing_was_there(bank: Bank) -> None:
    maker = ClipMaker(bank.scenes, bank.first_group, TOKENIZER)
    stage = Stage("video", groups=(4, 4), chunks=(6, 6), questions=12, recalled=True)
    absent = next(name for name in (f"{c} {s}" for c in COLOURS for s in SHAPES) if name not in maker.named)
    maker.mistaken = {absent: [3], next(iter(n for n in maker.named if "digit" not in n)): [0]}
    answers = set()
    for seed in range(30):
        video = recalled.draw(maker, stage, np.random.default_rng(seed), 6)
        doubted = [q for q in video.questions[-recalled.DOUBTED :] if q.family == "presence"]
        answers |= {(absent in q.text, q.answer) for q in doubted}
        for question in doubted:
            assert (question.answer == "yes") == bool(question.events)
    assert (True, "no") in answers and (True, "yes") not in answers and (False, "yes") in answers


# --- training ---------------------------------------------------------------------------------------------------------

TINY = Stage("tiny", groups=(1, 2), chunks=(1, 1), batch=4, questions=4)


@pytest.fixture
def tiny_curriculum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "CURRICULUM", ((1.0, ((TINY, 1.0),)),))
    monkeypatch.setattr(train, "SAVE_EVERY", 2)


def loss_of(model: Any, maker: ClipMaker, features: tuple[Tensor, Tensor]) -> float:
    batch = bind.draw_batch(maker, TINY, np.random.default_rng(5))
    with torch.no_grad():
        return float(bind.answer_loss(bind.answer_logits(model, *features, batch), batch.targets))


@pytest.mark.usefixtures("tiny_curriculum")
def test_a_few_steps_of_binding_lower_the_loss(maker: ClipMaker, bank: Bank, tmp_path: Path) -> None:
    model = train.new_model(TOKENIZER, 0)
    features = features_of(model, bank)
    before = loss_of(model, maker, features)
    train.train_bind(model, maker, features, tmp_path, steps=12, seed=0)
    assert loss_of(model, maker, features) < before - 0.3


@pytest.mark.usefixtures("tiny_curriculum")
def test_a_training_that_was_cut_off_goes_on_as_if_it_had_not(
    maker: ClipMaker, bank: Bank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(folder: Path) -> dict[str, Tensor]:
        folder.mkdir(exist_ok=True)
        model = train.new_model(TOKENIZER, 0)
        train.train_bind(model, maker, features, folder, steps=4, seed=0)
        return dict(model.state_dict())

    features = features_of(train.new_model(TOKENIZER, 0), bank)
    whole = trained(tmp_path / "whole")
    draw, drawn = bind.draw_batch, []

    def cut_off(*given: Any, **named: Any) -> Any:
        drawn.append(named)
        if len(drawn) == 4:
            raise KeyboardInterrupt
        return draw(*given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(bind, "draw_batch", cut_off)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "parts")
    torch.manual_seed(99)
    resumed = trained(tmp_path / "parts")
    assert whole.keys() == resumed.keys()
    assert max(gap(whole[name].float(), resumed[name].float()) for name in whole) < 1e-6
    started = train.new_model(TOKENIZER, 0).state_dict()
    assert max(gap(whole[name].float(), started[name].float()) for name in whole) > 1e-4


def test_the_curriculum_covers_the_whole_training_and_ends_at_full_length() -> None:
    assert sum(share for share, _ in train.CURRICULUM) == pytest.approx(1)
    names = [[stage.name for stage, _ in train.stages_at(p / 100)] for p in range(100)]
    assert names[0] == ["glance"] and "long" in names[-1] and train.stages_at(1.0) == train.stages_at(0.99)


# --- the checkpoint ---------------------------------------------------------------------------------------------------


def test_a_saved_model_comes_back_through_the_loader_as_it_was(small: Small) -> None:
    tensors = small.network.state_dict()
    again = load(small.folder, device="cpu")
    assert isinstance(again, Qwen3VL)
    assert again.model_id == small.driver.model_id and again.dtype == torch.float32
    assert gap(again._decoder._model.embed_tokens.weight, tensors["model.language_model.embed_tokens.weight"]) == 0
    assert (
        gap(again._visual.blocks[3].mlp.linear_fc1.weight, tensors["model.visual.blocks.3.mlp.linear_fc1.weight"]) == 0
    )
    assert again._prompt.tokenizer.get_vocab() == TOKENIZER.get_vocab()
    assert (again.num_layers, again.num_heads, again.num_kv_heads, again.frames_per_group) == (6, 6, 3, 2)
    assert again._pixels == SPEC
    size = sum(path.stat().st_size for path in small.folder.iterdir())
    assert size < 16 << 20


def test_a_saved_model_says_how_it_wants_to_be_used_and_can_be_asked(small: Small) -> None:
    config = Config().overridden(recommended_settings(str(small.folder)))
    assert (config.read.fps, config.memory.chunk_frames, config.answer.dialogue_turns) == (2.0, 8, 0)
    picture = np.full((256, 256, 3), 90, np.uint8)
    groups = small.driver.encode([Frame(picture, k / 2, k) for k in range(8)])
    assert [group.grid for group in groups] == [(GRID, GRID)] * 4
    prefix = small.driver.prefix()
    context = [prefix, small.driver.prefill(groups, [prefix], 0)]
    said = "".join(small.driver.answer("What is shown?", context, (), AnswerConfig(max_new_tokens=5)))
    assert set(TOKENIZER(said).input_ids) <= set(range(len(TOKENIZER)))
    assert said == "".join(small.driver.answer("what is SHOWN", context, (), AnswerConfig(max_new_tokens=5)))
