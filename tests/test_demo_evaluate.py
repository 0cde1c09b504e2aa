"""The demo model is measured on clips it never saw, as a session would show them, and the samples
are what they say.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import av
import numpy as np
import pytest
import torch
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from config import AnswerConfig, Config
from frames import Frame
from memory.chunk import KVChunk, PositionLayout
from models.demo.world import SHAPES, background, render
from models.video_llm import Turn, VideoLLM
from training.bind import StoredChunk
from training.evaluate import (
    BEGIN,
    CARD,
    COLUMNS,
    END,
    IN_WORLD,
    LENGTHS,
    PAINTER,
    PHRASES,
    SIDES,
    Verdict,
    caption_facts,
    judge,
    longest_common,
    make_clip,
    measured_section,
    paint,
    rows,
    tally,
    things_told,
    update_card,
    write,
)
from training.questions import FAMILIES, NOT_SHOWN
from training.samples import SAMPLES, describe, to_json
from training.scenes import moments, random_scene

RUN: dict[str, object] = {
    "model": "demo@0",
    "commit": "abc",
    "date": "2026-01-01",
    "hardware": "a machine",
    "seed": 1,
    "clips": 3,
    "seconds": 2,
}


class Oracle:
    """Looks like a model, remembers what it was given, and answers from a table."""

    def __init__(self, answers: dict[str, str]) -> None:
        self.answers = answers
        self.prefilled: list[list[int]] = []
        self.contexts: set[tuple[int, ...]] = set()

    def prefix(self) -> KVChunk:
        return self._chunk(-1)

    def encode(self, frames: Sequence[Frame]) -> Sequence[Frame]:
        return frames

    def prefill(self, groups: Sequence[Any], context: Sequence[KVChunk], index: int) -> KVChunk:
        self.prefilled.append([chunk.index for chunk in context])
        return self._chunk(index)

    def answer(
        self,
        question: str,
        context: Sequence[KVChunk],
        dialogue: Sequence[Turn],
        options: AnswerConfig,
    ) -> Iterator[str]:
        self.contexts.add(tuple(chunk.index for chunk in context))
        yield from self.answers.get(question, "dunno").partition(" ")

    @staticmethod
    def _chunk(index: int) -> KVChunk:
        none = torch.zeros(1, 1, 1, 2)
        layout = PositionLayout(torch.zeros(3, 1, dtype=torch.long), 1)
        return KVChunk(none, none, layout, torch.ones(1, dtype=torch.bool), 0.0, 1.0, index)


def test_a_clip_is_the_same_each_time_and_no_two_are_alike() -> None:
    one, same, other, elsewhere = make_clip(1, 4), make_clip(1, 4), make_clip(1, 7), make_clip(2, 4)
    assert one.chunks == same.chunks and one.questions == same.questions
    pictures = [[frame.image for part in clip.frames for frame in part] for clip in (one, same)]
    assert all(np.array_equal(a, b) for a, b in zip(*pictures, strict=True))
    assert one.chunks != other.chunks and one.chunks != elsewhere.chunks


def test_clips_take_turns_in_length_and_vary_in_size_and_codec() -> None:
    clips = [make_clip(3, number) for number in range(12)]
    sizes = set()
    for number, clip in enumerate(clips):
        stage = LENGTHS[number % 3]
        assert clip.stage is stage and stage.chunks[0] <= len(clip.chunks) <= stage.chunks[1]
        frames = [frame for part in clip.frames for frame in part]
        sizes |= {frame.width for frame in frames}
        assert all(frame.width == frame.height == frames[0].width for frame in frames)
        assert [len(part) for part in clip.frames] == [
            2 * len(chunk.groups) for chunk in clip.chunks
        ]
        for part, chunk in zip(clip.frames, clip.chunks, strict=True):
            middles = [
                (a.pts_seconds + b.pts_seconds) / 2
                for a, b in zip(part[::2], part[1::2], strict=True)
            ]
            assert middles == pytest.approx([moment.pts_seconds for moment in chunk.truth])
        assert {q.family for q in clip.questions} <= set(FAMILIES)
    assert (
        sizes <= set(SIDES)
        and len(sizes) > 2
        and any(c.hidden for clip in clips for c in clip.chunks)
    )


def test_the_other_painters_clips_are_of_one_shape_and_things_of_any_size() -> None:
    clips = [make_clip(1, number, PAINTER) for number in range(9)]
    shapes, sizes = set(), set()
    for clip in clips:
        frames = [frame for part in clip.frames for frame in part]
        assert all(frame.image.shape == frames[0].image.shape for frame in frames)
        shapes.add(frames[0].image.shape)
        sizes |= {
            t.size
            for chunk in clip.chunks
            for m in chunk.truth
            for event in m.events
            for t in event.things
        }
        for part, chunk in zip(clip.frames, clip.chunks, strict=True):
            middles = [
                (a.pts_seconds + b.pts_seconds) / 2
                for a, b in zip(part[::2], part[1::2], strict=True)
            ]
            assert middles == pytest.approx([moment.pts_seconds for moment in chunk.truth])
    assert len(shapes) > 3 and min(sizes) < 0.2 and max(sizes) > 0.5
    assert [c.questions for c in clips] != [make_clip(1, number).questions for number in range(9)]


def test_other_phrases_are_asked_about_the_same_pictures() -> None:
    plain, phrased = make_clip(1, 4), make_clip(1, 4, PHRASES)
    assert plain.chunks == phrased.chunks
    assert all(
        np.array_equal(one.image, other.image)
        for ours, theirs in zip(plain.frames, phrased.frames, strict=True)
        for one, other in zip(ours, theirs, strict=True)
    )
    assert not {q.text for q in plain.questions} & {q.text for q in phrased.questions}


def test_frames_are_painted_at_their_size_and_a_codec_only_blurs_them() -> None:
    scenes = [random_scene(np.random.default_rng(k), 1) for k in range(2)]
    chunk = StoredChunk((4, 5, 6, 7), tuple(moments(scenes[1], 500.0)))
    plain, coded = (paint(chunk, scenes, [0, 4, 8], 160, crf) for crf in (None, 26))
    for k, (frame, blurred) in enumerate(zip(plain, coded, strict=True)):
        wanted = render(scenes[1], k / 2, 160)
        assert frame.pts_seconds == blurred.pts_seconds == 500 + k / 2
        assert np.array_equal(frame.image, wanted) and not np.array_equal(blurred.image, wanted)
        assert np.abs(blurred.image.astype(float) - wanted).mean() < 12


def test_a_model_is_asked_as_a_session_asks_and_does_not_get_what_is_hidden() -> None:
    clip = next(
        c
        for c in (make_clip(1, n) for n in range(2, 60, 3))
        if any(chunk.hidden for chunk in c.chunks)
    )
    answers = {question.text: question.answer for question in clip.questions}
    wrong = clip.questions[0].text
    oracle = Oracle({**answers, wrong: "something else"})
    verdicts = judge(cast(VideoLLM, oracle), clip, Config())
    assert [v.question for v in verdicts if not v.right] == [wrong] and verdicts[
        0
    ].answer == "something else"
    shown = [number for number, chunk in enumerate(clip.chunks) if not chunk.hidden]
    assert oracle.contexts == {(-1, *shown)}
    assert oracle.prefilled == [[-1, *range(max(0, n - 2), n)] for n in range(len(clip.chunks))]


def verdict(
    family: str, group: str, right: bool, length: str = "1 chunk", kind: str = IN_WORLD
) -> Verdict:
    return Verdict(kind, length, family, group, "what?", "yes", "yes" if right else "no")


NOT_ASKED = dict.fromkeys(COLUMNS, (0, 0))
VERDICTS = [
    verdict("when", "when", True),
    verdict("when", "when", False, "2-3 chunks"),
    verdict("first", "order", True),
    verdict("after", "order", True),
    verdict("caption", "caption", False, "4-9 chunks"),
    verdict("when", "when", False, kind=PAINTER),
    verdict("first", "order", True, "4-9 chunks", PHRASES),
]


def test_answers_are_counted_by_group_and_length_and_by_the_kind_of_clip() -> None:
    by_group = tally(VERDICTS, "group")
    assert by_group["when"] == NOT_ASKED | {
        "1 chunk": (1, 1),
        "2-3 chunks": (0, 1),
        "all": (1, 2),
        PAINTER: (0, 1),
    }
    assert by_group["order"] == NOT_ASKED | {"1 chunk": (2, 2), "all": (2, 2), PHRASES: (1, 1)}
    assert tally(VERDICTS, "family")["after"]["all"] == (1, 1)
    header, *lines = rows(VERDICTS)
    assert header == [
        "questions",
        "asked",
        "1 chunk",
        "2-3 chunks",
        "4-9 chunks",
        "all",
        PAINTER,
        PHRASES,
        "target",
    ]
    assert lines == [
        ["when", "3", "100.0 %", "0.0 %", "-", "50.0 %", "0.0 %", "-", "95 %"],
        ["order", "3", "100.0 %", "-", "-", "100.0 %", "-", "100.0 %", "90 %"],
        ["caption", "1", "-", "-", "0.0 %", "0.0 %", "-", "-", ""],
    ]


def test_a_caption_is_judged_by_the_things_it_tells_in_order() -> None:
    told = "a red star. Then the digit 7. Then an orange ring and a blue heart and more"
    assert things_told(told) == ["red star", "digit 7", "orange ring", "blue heart"]
    assert (
        longest_common("abcd", "axcd") == 3
        and longest_common("ab", "ba") == 1
        and longest_common("", "a") == 0
    )
    repeated = "a red star. Then a red star. Then the digit 7"
    judged = [
        Verdict(IN_WORLD, "1 chunk", "caption", "caption", "what?", told, repeated),
        Verdict(IN_WORLD, "1 chunk", "when", "when", "when?", told, told),
    ]
    assert caption_facts(judged) == (2 / 3, 2 / 4)
    assert caption_facts([]) == (0.0, 0.0)


def test_figures_go_to_the_card_and_to_json_and_nothing_else_changes(tmp_path: Path) -> None:
    card, results = tmp_path / "card.md", tmp_path / "bench" / "demo.json"
    card.write_text(f"# Before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    write(VERDICTS, RUN, card, results)
    once = card.read_text(encoding="utf-8")
    assert "in world 0.0 % / 0.0 %" in once and once.startswith(f"# Before\n{BEGIN}\n| questions")
    assert once.endswith(f"{END}\nafter\n") and "old" not in once
    assert "commit `abc`, 2026-01-01, on a machine" in once
    write(VERDICTS, RUN, card, results)
    assert card.read_text(encoding="utf-8") == once
    kept = json.loads(results.read_text(encoding="utf-8"))
    assert (
        kept["commit"] == "abc"
        and kept["group"]["when"]["all"] == [1, 2]
        and kept["questions"] == 7
    )
    with pytest.raises(ValueError, match="no section"):
        update_card("# A card", measured_section(VERDICTS, RUN))


def test_the_model_card_tells_the_size_of_the_model() -> None:
    card = CARD.read_text(encoding="utf-8")
    network = Qwen3VLForConditionalGeneration(
        Qwen3VLConfig.from_pretrained(CARD.parent / "weights")
    )
    sizes = [sum(p.numel() for p in part.parameters()) for part in (network, network.model.visual)]
    assert all(f"{size:,}" in card for size in sizes)
    assert BEGIN in card and END in card and "Apache-2.0" in card


# --- the samples ----


@pytest.fixture(params=SAMPLES, ids=[sample.name for sample in SAMPLES])
def bundled(request: pytest.FixtureRequest, repository: Path) -> Any:
    folder, sample = repository / "samples", request.param
    told = json.loads((folder / f"{sample.name}.json").read_text(encoding="utf-8"))
    return SimpleNamespace(
        sample=sample, video=folder / f"{sample.name}.mp4", told=told, folder=folder
    )


def test_a_sample_is_described_as_the_world_would_describe_it_now(bundled: Any) -> None:
    text = (bundled.folder / f"{bundled.sample.name}.json").read_text(encoding="utf-8")
    assert text == to_json(describe(bundled.sample)), "run `python -m training.samples`"


def test_a_samples_questions_name_events_that_are_there(bundled: Any) -> None:
    known = [[event["start_seconds"], event["stop_seconds"]] for event in bundled.told["events"]]
    families = {question["family"] for question in bundled.told["questions"]}
    assert len(families) >= 17 and len(bundled.told["questions"]) > 50
    for question in bundled.told["questions"]:
        assert all(span in known for span in question["spans"])
        for name in re.findall(
            r"(?:red|green|blue|yellow|purple|orange|white|cyan) \w+", question["question"]
        ):
            shown = [
                [event["start_seconds"], event["stop_seconds"]]
                for event in bundled.told["events"]
                if name in {thing["name"] for thing in event["things"]}
            ]
            if question["answer"] not in ("no", NOT_SHOWN) and name.split()[1] in SHAPES:
                assert any(span in question["spans"] for span in shown), question


def test_a_samples_pictures_are_the_worlds(bundled: Any) -> None:
    stream = bundled.sample.stream()
    told = bundled.told["duration_seconds"]
    assert told == stream.duration_seconds == bundled.sample.duration_seconds
    with av.open(str(bundled.video)) as container:
        video = container.streams.video[0]
        assert (video.width, video.height, video.codec_context.name) == (256, 256, "h264")
        assert container.duration == pytest.approx(told * 1_000_000, abs=1000)
        for seconds in np.linspace(0, told - 1, 7):
            container.seek(int(seconds * 1_000_000))
            frame = next(f for f in container.decode(video=0) if f.time >= seconds)
            wanted = stream.at(frame.time, 256).astype(float)
            assert np.abs(frame.to_ndarray(format="rgb24") - wanted).mean() < 8
            assert np.abs(np.asarray(background(1, 256)) - wanted).mean() > 8


def test_the_samples_are_small(repository: Path) -> None:
    assert sum(path.stat().st_size for path in (repository / "samples").iterdir()) < 4 << 20
