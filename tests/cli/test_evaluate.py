from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from sa3lora.audio import write_audio
from sa3lora.cli.main import main
from sa3lora.models.clap import ClapConfig, TinyClap, config_to_dict


@pytest.fixture(scope="module")
def clap_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random TinyClap as a folder."""
    folder = tmp_path_factory.mktemp("clap")
    words = Tokenizer(WordLevel({"[UNK]": 0, "slow": 1, "noise": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    torch.manual_seed(0)
    config = ClapConfig(window_s=1.0)
    model = TinyClap(config, words)
    (folder / "config.json").write_text(json.dumps(config_to_dict(config)), encoding="utf-8")
    (folder / "tokenizer.json").write_text(words.to_str(), encoding="utf-8")
    save_file(model.state_dict(), folder / "model.safetensors")
    return folder


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    for number in range(3):
        generator = torch.Generator().manual_seed(number)
        audio = 0.1 * torch.randn(2, 16_000, generator=generator)
        write_audio(tmp_path / "style" / f"{number}.wav", audio, 8000)
        (tmp_path / "style" / f"{number}.txt").write_text(
            "slow noise " * number or "noise", "utf-8"
        )
    return tmp_path / "style"


@pytest.fixture
def arguments(small_model: Path, clap_folder: Path, reference: Path, tmp_path: Path) -> list[str]:
    return [
        "evaluate", f"{small_model / 'adapter_lora.safetensors'}=0.5",
        "--reference", str(reference), "--model", str(small_model), "--embedder", str(clap_folder),
        "--n", "3", "--duration-s", "1", "--steps", "2", "--tuples", "4", "--allow-other-base",
        "--device", "cpu", "--out", str(tmp_path / "out"), "--quiet",
    ]  # fmt: skip


def test_the_table_and_the_verdicts_stand_on_stdout(
    arguments: list[str],
    make_latents: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    dataset = make_latents(tmp_path / "latents", held_out=2)
    assert main([*arguments, "--dataset", str(dataset)]) == 0
    shown = capsys.readouterr().out
    for title in ("Held-out loss", "FAD", "KAD", "CLAP score", "Diversity"):
        assert title in shown
    assert "tiny-clap@" in shown
    assert "1 s windows, n = 3" in shown
    assert "reference style" in shown
    assert (tmp_path / "out" / "report.html").is_file()
    assert len(list((tmp_path / "out" / "adapter").glob("*.wav"))) == 3


def test_json_on_stdout_is_what_lies_in_the_folder(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    stored = json.loads((tmp_path / "out" / "evaluation.json").read_text(encoding="utf-8"))
    assert printed.pop("out") == str(tmp_path / "out")
    assert printed == stored
    assert printed["adapters"][0]["strength"] == 0.5


def test_a_missing_reference_is_wrong_usage(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments[arguments.index("--reference") + 1] = str(tmp_path / "gone")
    assert main(arguments) == 2
    assert "gone: no such folder of audio, and no dataset" in capsys.readouterr().err


def test_a_missing_adapter_is_one_message(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments[1] = str(tmp_path / "gone.safetensors")
    assert main(arguments) == 1
    assert capsys.readouterr().err.startswith("AdapterError: ")
    assert not (tmp_path / "out").exists()


def test_a_zero_byte_file_in_the_reference_is_named_and_nothing_is_written(
    arguments: list[str], reference: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (reference / "2.wav").write_bytes(b"")
    assert main(arguments) == 1
    assert "2.wav: 0 bytes" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["style"]


def test_a_folder_with_other_files_is_not_overwritten(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "song.wav").write_bytes(b"precious")
    assert main(arguments) == 1
    assert "holds other files and no earlier evaluation" in capsys.readouterr().err
    assert (tmp_path / "out" / "song.wav").read_bytes() == b"precious"


def test_the_report_of_a_run_lies_in_the_run(
    arguments: list[str], small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "runs" / "mine"
    run.mkdir(parents=True)
    (run / "adapter.safetensors").write_bytes(
        (small_model / "adapter_lora.safetensors").read_bytes()
    )
    (run / "recipe.yaml").write_text(f"model: {small_model}\n", encoding="utf-8")
    del arguments[arguments.index("--out") : arguments.index("--out") + 2]
    arguments[1] = str(run)
    assert main(arguments) == 0
    assert (run / "evaluation" / "evaluation.json").is_file()
    assert "no held-out loss" in capsys.readouterr().err


def test_a_reference_without_captions_takes_the_prompts_of_the_dataset(
    arguments: list[str],
    reference: Path,
    make_latents: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for sidecar in reference.glob("*.txt"):
        sidecar.unlink()
    assert main(arguments) == 1
    assert "the name of a packaged list: music, sfx or tiny" in capsys.readouterr().err
    dataset = make_latents(tmp_path / "latents", held_out=2)
    assert main([*arguments, "--dataset", str(dataset)]) == 0
    assert "style has no captions: the prompts are those of latents" in capsys.readouterr().out
