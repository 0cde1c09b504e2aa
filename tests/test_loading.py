"""Models come from where the user says, as data only, and what is wrong is said in one sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file

from models import loading
from models.checkpoint import DEMO_FOLDER, ModelError
from models.loading import load


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
