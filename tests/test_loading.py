"""Models come from where the user says, as data only, and what is wrong is said in one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file

from config import AnswerConfig
from errors import LonglookError
from models import loading
from models.checkpoint import DEMO_FOLDER, ModelError
from models.loading import load
from models.qwen3_vl import Qwen3VL
from models.video_llm import AnswerRequest


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "tiny"))


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def sentence(error: pytest.ExceptionInfo[ModelError]) -> str:
    text = str(error.value)
    assert text and "\n" not in text and len(text) < 400
    return text


def test_a_folder_is_loaded_with_what_its_configuration_says(checkpoint: Path) -> None:
    model = load(checkpoint, device="cpu")
    assert (model.num_layers, model.num_heads, model.num_kv_heads, model.frames_per_group) == (
        3,
        4,
        2,
        2,
    )
    assert model.device == torch.device("cpu") and model.dtype == torch.float32
    assert load(str(checkpoint), dtype="bfloat16").dtype == torch.bfloat16


def test_half_precision_is_the_choice_on_cuda_and_float32_on_the_cpu() -> None:
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert loading._dtype("auto", cuda, {"dtype": "float32"}) == torch.bfloat16
    assert loading._dtype("auto", cuda, {"torch_dtype": "float16"}) == torch.float16
    assert loading._dtype("auto", cpu, {"dtype": "bfloat16"}) == torch.float32
    assert loading._dtype("float16", cpu, {}) == torch.float16


def test_the_id_follows_the_weights_and_not_the_place(checkpoint: Path, copy: Path) -> None:
    assert load(checkpoint).model_id == load(copy).model_id
    assert load(checkpoint).model_id.startswith("tiny@")
    weights = load_file(copy / "model.safetensors")
    weights["model.language_model.norm.weight"] += 1
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    assert load(checkpoint).model_id != load(copy).model_id


def test_the_embedded_model_loads_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    if not (DEMO_FOLDER / "config.json").is_file():
        pytest.skip("the embedded model's weights are not in this checkout")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert load("demo").model_id.startswith("demo@")


def test_a_missing_embedded_model_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("models.checkpoint.DEMO_FOLDER", tmp_path)
    with pytest.raises(ModelError) as error:
        load("demo")
    assert "missing" in sentence(error)


@pytest.mark.parametrize(
    "name", ["no_such_model", "../nowhere/at/all", "a/b/c", "/etc/hostname", ""]
)
def test_a_name_that_is_no_model_is_said(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError) as error:
        load(name)
    sentence(error)


def test_a_hub_id_that_cannot_be_had_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError) as error:
        load("longlook-tests/not-there")
    assert "longlook-tests/not-there" in sentence(error)


def test_another_architecture_is_said(copy: Path) -> None:
    edit(copy / "config.json", model_type="llama")
    with pytest.raises(ModelError) as error:
        load(copy)
    assert "'llama'" in sentence(error) and "qwen3_vl" in sentence(error)


def test_pickled_weights_are_not_touched(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    torch.save(weights, copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(ModelError) as error:
        load(copy)
    assert "safetensors" in sentence(error)


def test_remote_code_is_never_run(copy: Path) -> None:
    (copy / "evil.py").write_text(f"open({str(copy / 'ran')!r}, 'w').close()\nclass Evil: pass\n")
    edit(copy / "config.json", auto_map={"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"})
    edit(copy / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]})
    load(copy)
    assert not (copy / "ran").exists()
    edit(copy / "config.json", model_type="evil")
    with pytest.raises(ModelError):
        load(copy)
    assert not (copy / "ran").exists()


@pytest.mark.parametrize("damage", ["truncated", "lacking", "misshapen", "config", "empty"])
def test_a_damaged_checkpoint_is_said(copy: Path, damage: str) -> None:
    path = copy / "model.safetensors"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-1000])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "config":
        (copy / "config.json").write_text("{ not json")
    else:
        weights = load_file(path)
        norm = weights.pop("model.language_model.norm.weight")
        if damage == "misshapen":
            weights["model.language_model.norm.weight"] = norm[:7].clone()
        save_file(weights, path, {"format": "pt"})
    with pytest.raises(ModelError) as error:
        load(copy)
    sentence(error)


def test_a_missing_tokenizer_is_said(copy: Path) -> None:
    for path in copy.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ModelError) as error:
        load(copy)
    sentence(error)


@pytest.mark.parametrize(
    ("device", "dtype"), [("warp", "auto"), ("cpu", "int8"), ("cuda:99", "auto")]
)
def test_a_device_or_dtype_that_is_none_is_said(checkpoint: Path, device: str, dtype: str) -> None:
    with pytest.raises(ModelError) as error:
        load(checkpoint, device=device, dtype=dtype)
    sentence(error)


def edit_text(folder: Path, **changes: object) -> None:
    """Changes the language model's part of a checkpoint's configuration."""
    text = json.loads((folder / "config.json").read_text())["text_config"]
    edit(folder / "config.json", text_config={**text, **changes})


def deep() -> str:
    return "[" * 100_000


MISTAKES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no object": (lambda m: (m / "config.json").write_text("[1]"), "config.json holds no object"),
    "null": (lambda m: (m / "config.json").write_text("null"), "config.json holds no object"),
    "nested": (lambda m: (m / "config.json").write_text(deep()), "nested too deep"),
    "no heads": (
        lambda m: edit_text(m, num_attention_heads=0),
        "num_attention_heads must be between 1 and 1,024, not 0",
    ),
    "a million layers": (
        lambda m: edit_text(m, num_hidden_layers=10**6),
        "num_hidden_layers must be between 1 and 512",
    ),
    "no such rotary kind": (
        lambda m: edit_text(m, rope_parameters={"rope_type": "mrope2", "rope_theta": 1}),
        "its files name 'mrope2', which is not known here",
    ),
    "size": (lambda m: edit(m / "preprocessor_config.json", size=224), "size must name edges"),
    "no spread": (
        lambda m: edit(m / "preprocessor_config.json", image_std=[0, 0, 0]),
        "image_std cannot be [0, 0, 0]",
    ),
    "mean of two": (
        lambda m: edit(m / "preprocessor_config.json", image_mean=[0.5, 0.5]),
        "image_mean cannot be [0.5, 0.5]",
    ),
    "pointer": (
        lambda m: (m / "model.safetensors").write_text("version https://git-lfs.github.com/spec"),
        "only a pointer of Git LFS for its model.safetensors",
    ),
}
TEMPLATES = {
    "syntax": "{% for %}",
    "its own error": "{{ raise_exception('needs two images') }}",
    "out of the sandbox": "{{ ''.__class__.__mro__ }}",
    "too large": "{{ 'x' * 10 ** 18 }}",
    "overflow": "{{ 10.0 ** 999 }}",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_a_checkpoint_says_wrong_of_itself_is_said(copy: Path, mistake: str) -> None:
    change, words = MISTAKES[mistake]
    change(copy)
    with pytest.raises(ModelError) as error:
        load(copy)
    assert words in sentence(error)


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_chat_template_that_does_not_work_is_said(copy: Path, template: str) -> None:
    (copy / "chat_template.jinja").write_text("<|video_pad|>" + TEMPLATES[template])
    with pytest.raises(ModelError) as error:
        load(copy)
    assert "its chat template does not work" in sentence(error)


@pytest.mark.parametrize("method", ["fp8", "awq", "bitsandbytes", "gptq", "mxfp4", "torchao"])
def test_quantised_weights_are_said_with_what_they_need(copy: Path, method: str) -> None:
    settings = {"quant_method": method, "bits": 4, "load_in_4bit": True}
    edit(copy / "config.json", quantization_config=settings)
    with pytest.raises(ModelError) as error:
        load(copy)
    assert f"is quantised with {method}" in sentence(error)


def test_settings_that_older_tools_wrote_are_read(copy: Path) -> None:
    edit(copy / "preprocessor_config.json", image_mean=0.5, image_std=0.25)
    model = load(copy)
    assert isinstance(model, Qwen3VL)
    assert (model._pixels.mean, model._pixels.std) == ((0.5,) * 3, (0.25,) * 3)


@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation"])
@pytest.mark.parametrize("part", ["all", "text"])
def test_a_checkpoint_cannot_choose_code_by_the_name_of_an_attention(
    copy: Path, key: str, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "transformers.integrations.hub_kernels.load_and_register_attn_kernel",
        lambda *_, **__: pytest.fail("a repository of kernels was to be loaded"),
    )
    change = edit_text if part == "text" else lambda m, **c: edit(m / "config.json", **c)
    change(copy, **{key: "evil/kernel"})
    load(copy)


def test_a_bug_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AttributeError("a bug")

    monkeypatch.setitem(loading.FAMILIES, "qwen3_vl", fail)
    with pytest.raises(AttributeError, match="a bug"):
        load("demo")


def test_a_model_that_computes_no_numbers_says_so(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    weights[name][:] = float("nan")
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    model = load(copy)
    request = AnswerRequest("What?", [model.prefix()], [], AnswerConfig())
    with pytest.raises(LonglookError, match="the model computed no numbers"):
        model.answer_batch().add_all([request])
