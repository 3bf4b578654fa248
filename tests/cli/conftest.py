from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Undo what the program does to logging and warnings of the whole process."""
    root = logging.getLogger()
    before = list(root.handlers)
    yield
    logging.captureWarnings(False)
    root.handlers[:] = before


_RECIPE = """
model: SMALL
data: {root: latents, frames_per_batch: 120}
adapter: {r: 2}
train: {max_steps: 1}
validate: {every: 0}
preview: {every: 0}
"""


@pytest.fixture(scope="module")
def inputs(
    tmp_path_factory: pytest.TempPathFactory, small_model: Path, make_latents: Callable[..., Path]
) -> Path:
    """A folder with good input, and with all sorts of broken input."""
    root = tmp_path_factory.mktemp("inputs")
    _write_audio(root)
    _write_adapters(root, small_model)
    _write_models(root, small_model)
    _write_datasets(root, make_latents)
    text = _RECIPE.replace("SMALL", str(small_model.resolve()))
    (root / "mine").mkdir()
    (root / "mine" / "recipe.yaml").write_text(text, "utf-8")
    for name, content in {
        "zero.yaml": b"", "list.yaml": b"- a\n- b\n", "open.yaml": b"train: [1,\n",
        "binary.yaml": b"\xff\xfe\x00", "odd.yaml": b"[a, b]: 2\n", "number.yaml": b"1: 2\n",
        "twice.yaml": b"model: a\nmodel: b\n", "note.txt": b"hello", "clap.pt": b"hello",
    }.items():  # fmt: skip
        (root / name).write_bytes(content)
    (root / "runs" / "taken").mkdir(parents=True)
    (root / "runs" / "taken" / "notes.txt").write_text("mine", "utf-8")
    (root / "empty").mkdir()
    return root


def _write_audio(root: Path) -> None:
    rng = np.random.default_rng(0)
    for folder in ("audio", "zero", "text", "cut"):
        (root / folder).mkdir()
        for number in range(2):
            wave = 0.1 * rng.standard_normal((6400, 2))
            soundfile.write(root / folder / f"{number}.wav", wave, 8000)
            (root / folder / f"{number}.txt").write_text(f"noise {number}", "utf-8")
    whole = (root / "audio" / "0.wav").read_bytes()
    (root / "zero" / "1.wav").write_bytes(b"")
    (root / "text" / "1.wav").write_bytes(b"this is no sound " * 20)
    (root / "cut" / "1.wav").write_bytes(whole[: len(whole) // 2])


def _write_adapters(root: Path, small_model: Path) -> None:
    from safetensors.torch import save_file

    from sa3lora.adapters.files import AdapterFile, read_adapter, write_adapter
    from sa3lora.adapters.header import PREFIX

    adapter = read_adapter(small_model / "adapter_lora.safetensors")
    write_adapter(
        root / "good.safetensors",
        AdapterFile(adapter.config, adapter.tensors, {f"{PREFIX}base_id": "small"}),
    )
    shutil.copy(small_model / "adapter_bora.safetensors", root / "bora.safetensors")
    shutil.copy(small_model.parent / "medium" / "adapter_lora.safetensors", root / "m.safetensors")
    whole = (root / "good.safetensors").read_bytes()
    table = b"[1, 2]".ljust(8)
    for name, content in {
        "zero": b"", "cut": whole[:-100], "head": whole[:200], "text": b"no adapter at all",
        "table": len(table).to_bytes(8, "little") + table,
    }.items():  # fmt: skip
        (root / f"{name}.safetensors").write_bytes(content)
    save_file({}, root / "none.safetensors")


def _write_models(root: Path, small_model: Path) -> None:
    weights, config, text = "model.safetensors", "model_config.json", "text_encoder"
    whole = (small_model / weights).read_bytes()
    for name, file, content in [
        ("no_config", config, None), ("zero_config", config, b""), ("list_config", config, b"[]"),
        ("open_config", config, b'{"model": '), ("empty_config", config, b"{}"),
        ("medium_config", config, (small_model.parent / "medium" / config).read_bytes()),
        ("no_weights", weights, None), ("zero_weights", weights, b""),
        ("cut_weights", weights, whole[: len(whole) // 2]),
        ("no_words", f"{text}/config.json", None), ("zero_words", f"{text}/config.json", b""),
        ("list_words", f"{text}/tokenizer.json", b"[]"), ("cut_words", f"{text}/{weights}", b"x"),
    ]:  # fmt: skip
        folder = root / "models" / name
        (folder / text).mkdir(parents=True)
        for path in (
            weights,
            config,
            *(f"{text}/{p.name}" for p in (small_model / text).iterdir()),
        ):
            shutil.copy(small_model / path, folder / path)
        if content is None:
            (folder / file).unlink()
        else:
            (folder / file).write_bytes(content)


def _write_datasets(root: Path, make_latents: Callable[..., Path]) -> None:
    make_latents(root / "latents", tracks=3, clips_per_track=1)
    make_latents(root / "other", tracks=3, clips_per_track=1, ae_hash="0" * 64)
    meta = json.loads((root / "latents" / "dataset.json").read_text("utf-8"))
    for name, file, content in [
        ("no_meta", "dataset.json", None), ("zero_meta", "dataset.json", b""),
        ("list_meta", "dataset.json", b"[]"),
        ("odd_meta", "dataset.json", json.dumps({**meta, "counts": "many"}).encode()),
        ("no_shard", "shard-0-0.arrow", None), ("zero_shard", "shard-0-0.arrow", b""),
        ("zero_silence", "silence.safetensors", b""),
    ]:  # fmt: skip
        shutil.copytree(root / "latents", root / "sets" / name)
        target = root / "sets" / name / file
        assert target.exists()
        target.unlink() if content is None else target.write_bytes(content)
