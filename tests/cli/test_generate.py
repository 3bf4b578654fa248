from __future__ import annotations

import dataclasses
import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from sa3lora.adapters.files import read_adapter, write_adapter
from sa3lora.adapters.stacked import Stacked, stack_metadata
from sa3lora.cli.generate_run import output_paths, parse_interval, parse_region
from sa3lora.cli.main import main
from sa3lora.errors import UsageError


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "sounds" / "out.wav"


@pytest.fixture
def generate(
    small_model: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run the verb quickly; returns status, stdout and stderr."""

    def run(*args: str, model: str | None = str(small_model)) -> tuple[int, str, str]:
        argv = ["generate", *args, "-o", str(out), "--quiet"]
        argv += ["--model", model] if model is not None else []
        if "--steps" not in args:
            argv += ["--steps", "1"]
        if "--duration" not in args:
            argv += ["--duration", "0.2"]
        status = main(argv)
        written = capsys.readouterr()
        return status, written.out, written.err

    return run


@pytest.fixture
def tone(tmp_path: Path) -> Path:
    path = tmp_path / "tone.wav"
    wave = 0.3 * np.sin(np.arange(8000) / 10)
    soundfile.write(path, wave, 16000)  # mono, half a second, another rate
    return path


def samples(path: Path) -> np.ndarray:
    """Read the sound; the header of a WAV file holds the time of writing."""
    audio: np.ndarray = soundfile.read(path, dtype="float32")[0]
    return audio


def test_a_clip_is_written_and_told(generate: Callable[..., Any], out: Path) -> None:
    status, told, err = generate("glass", "--seed", "5")
    assert (status, told) == (0, f"{out}  0.20 s  seed 5\n")
    audio, rate = soundfile.read(out)
    assert rate == 8000
    assert audio.shape == (1600, 2)
    assert audio.std() > 0
    assert "model: tiny" not in err


def test_the_seed_that_was_drawn_gives_the_same_file(
    generate: Callable[..., Any], out: Path
) -> None:
    _, told, _ = generate("glass")
    first = samples(out)
    seed = told.split("seed ")[1].strip()
    assert generate("glass", "--seed", seed, "--force")[0] == 0
    assert np.array_equal(samples(out), first)
    generate("glass", "--seed", str(int(seed) + 1), "--force")
    assert not np.array_equal(samples(out), first)


def test_several_prompts_and_durations_are_numbered(
    generate: Callable[..., Any], out: Path
) -> None:
    status, told, _ = generate(
        "glass", "", "--duration", "0.2", "--duration", "0.35", "--seed", "1", "--json"
    )
    assert status == 0
    result = json.loads(told)
    names = [out.with_name("out_1.wav"), out.with_name("out_2.wav")]
    assert [clip["path"] for clip in result["clips"]] == [str(name) for name in names]
    assert [clip["prompt"] for clip in result["clips"]] == ["glass", ""]
    assert [clip["duration_s"] for clip in result["clips"]] == [0.2, 0.35]
    assert (result["seed"], result["sample_rate"], result["model"]) == (1, 8000, "small")
    assert [len(soundfile.read(name)[0]) for name in names] == [1600, 2800]
    assert not out.exists()


def test_one_prompt_at_several_durations(generate: Callable[..., Any], out: Path) -> None:
    assert generate("glass", "--duration", "0.1", "--duration", "0.2")[0] == 0
    assert sorted(path.name for path in out.parent.iterdir()) == ["out_1.wav", "out_2.wav"]


def test_everything_at_once(generate: Callable[..., Any], tone: Path, small_model: Path) -> None:
    adapter = small_model / "adapter_lora.safetensors"
    status, _, err = generate(
        "glass", "--adapter", f"{adapter}=0.5", "--adapter", str(adapter), "--duration", "0.5",
        "--inpaint", str(tone), "--region", "0.1:0.2", "--region", "0.4:",
        "--init-audio", str(tone), "--init-noise-level", "0.8", "--negative-prompt", "noise",
        "--guidance-scale", "3", "--apg-scale", "0.5", "--cfg-interval", "0.1:0.9",
        "--sampler", "rk4", "--official-blocks", "--dtype", "bfloat16", "--device", "cpu",
    )  # fmt: skip
    assert status == 0, err
    assert err.count("sibling") == 2  # one line for each adapter that names no base


def test_an_adapter_changes_the_sound_and_strength_0_does_not(
    generate: Callable[..., Any], out: Path, small_model: Path
) -> None:
    adapter = small_model / "adapter_lora.safetensors"
    sounds = []
    nowhere = (f"{adapter}=1:0", "--skip-layers", "1=model.")
    for options in ((), (f"{adapter}=0",), nowhere, (f"{adapter}=1",)):
        args = ["--adapter", *options] if options else []
        assert generate("glass", "--seed", "1", "--force", *args)[0] == 0
        sounds.append(samples(out))
    assert np.array_equal(sounds[0], sounds[1])
    assert np.array_equal(sounds[0], sounds[2])
    assert not np.array_equal(sounds[0], sounds[3])


def test_without_model_and_adapter_it_is_tiny(
    generate: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, small_model: Path, out: Path
) -> None:
    from sa3lora.models import source

    monkeypatch.setattr(source, "TINY_FOLDER", small_model)
    status, _, err = generate("glass", model=None)
    assert status == 0
    assert "model: tiny, the embedded one; --model names another" in err


def test_the_model_is_what_the_adapter_was_trained_on(
    generate: Callable[..., Any], tmp_path: Path, small_model: Path
) -> None:
    from sa3lora.adapters.files import AdapterFile, read_adapter, write_adapter
    from sa3lora.models import resolve_model

    official = read_adapter(small_model / "adapter_lora.safetensors")
    dit_hash = resolve_model(str(small_model)).dit_hash
    hashed = {"sa3lora.base_id": str(small_model), "sa3lora.dit_hash": dit_hash}
    path = tmp_path / "mine.safetensors"
    write_adapter(path, AdapterFile(official.config, official.tensors, hashed))
    status, _, err = generate("glass", "--adapter", str(path), model=None)
    assert status == 0, err
    assert f"model: {small_model}, which {path} was trained on" in err
    assert "sibling" not in err


@pytest.mark.parametrize(
    ("args", "status", "complaint"),
    [
        (["--duration", "500"], 2, "UsageError: duration must be above 0 and at most 1.02 s"),
        (["--duration", "0"], 2, "duration must be above 0"),
        (["--duration", "0.1", "--duration", "0.2", "more", "and more"], 2,
         "3 prompts, 2 durations"),
        (["--steps", "0"], 2, "'--steps'"),
        (["--seed", str(2**63)], 2, "seed must lie in"),
        (["--sampler", "heun"], 2, "'--sampler'"),
        (["--cfg-interval", "0.9"], 2, "--cfg-interval 0.9: must be LO:HI"),
        (["--cfg-interval", "0.9:0.1"], 2, "0 <= LO <= HI <= 1"),
        (["--region", "0.1:0.2"], 2, "--region needs --inpaint FILE"),
        (["--inpaint", "TONE"], 2, "--inpaint needs --region A:B"),
        (["--inpaint", "TONE", "--region", "0.3:0.1"], 2, "--region 0.3:0.1: must be A:B"),
        (["--inpaint", "TONE", "--region", "x:1"], 2, "--region x:1: must be A:B, in seconds"),
        (["--inpaint", "TONE", "--region", "0.1:0.9"], 2, "beyond the duration of 0.2 s"),
        (["--init-noise-level", "0.5"], 2, "--init-noise-level needs --init-audio"),
        (["--init-audio", "TONE", "--init-noise-level", "2"], 2, "must lie in [0, 1], got 2"),
        (["--init-audio", "nothing.wav"], 1, "nothing.wav"),
        (["--init-audio", "EMPTY"], 1, "empty.wav: 0 bytes"),
        (["--adapter", "nothing.safetensors"], 1, "nothing.safetensors: no such file"),
        (["--adapter", "nothing.safetensors=much"], 2, "must be a number, got 'much'"),
        (["--adapter", "ADAPTER=0.5@0.8:0.2"], 2, "noise levels must be @LO:HI with 0 <= LO"),
        (["--adapter", "ADAPTER@0:late"], 2, "got @0:late; write PATH=0.7@0:0.5"),
        (["--adapter", "EMPTY"], 1, "empty.wav"),
        (["--guidance-scale", "nan"], 2, "guidance_scale must be finite"),
    ],
)  # fmt: skip
def test_bad_input_is_one_message_and_leaves_nothing(
    generate: Callable[..., Any],
    tone: Path,
    small_model: Path,
    out: Path,
    args: list[str],
    status: int,
    complaint: str,
) -> None:
    empty = tone.with_name("empty.wav")
    empty.touch()
    files = {"TONE": tone, "EMPTY": empty, "ADAPTER": small_model / "adapter_lora.safetensors"}
    for word, path in files.items():
        args = [arg.replace(word, str(path)) for arg in args]
    code, told, err = generate("glass", *args)
    assert code == status, err
    assert complaint in err
    assert told == ""
    assert "Traceback" not in err
    assert not out.parent.exists()


def test_an_adapter_of_another_model_is_refused_unless_allowed(
    generate: Callable[..., Any], small_model: Path
) -> None:
    other = small_model.with_name("medium") / "adapter_lora.safetensors"
    code, _, err = generate("glass", "--adapter", str(other))
    assert code == 1
    assert "AdapterMismatchError: " in err
    assert "does not fit small" in err


def test_an_unknown_model_lists_the_known_ones(generate: Callable[..., Any]) -> None:
    code, _, err = generate("glass", model="no-such")
    assert code == 1
    assert "Known names: tiny," in err


def test_files_that_exist_are_kept(generate: Callable[..., Any], out: Path) -> None:
    out.parent.mkdir()
    taken = out.with_name("out_2.wav")
    taken.write_bytes(b"mine")
    code, _, err = generate("glass", "drums")
    assert code == 2
    assert f"{taken} exists already. Pass --force" in err
    assert taken.read_bytes() == b"mine"
    assert [path.name for path in out.parent.iterdir()] == ["out_2.wav"]


def test_a_format_that_cannot_be_written_is_told_before_the_work(
    small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from sa3lora.pipeline import SA3Pipeline

    monkeypatch.setattr(SA3Pipeline, "__call__", lambda *a, **k: pytest.fail("it has begun"))
    for name in ("a.xyz", "a"):
        code = main(["generate", "glass", "-o", str(tmp_path / name), "--model", str(small_model)])
        assert code == 2
        assert "cannot write" in capsys.readouterr().err


def test_a_full_disk_leaves_no_clip_behind(
    generate: Callable[..., Any], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sa3lora import audio

    write = audio.write_audio

    def full(path: Path, *args: Any, **kwargs: Any) -> None:
        if Path(path).name == "out_2.wav":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, *args, **kwargs)

    monkeypatch.setattr(audio, "write_audio", full)
    code, _, err = generate("glass", "drums")
    assert code == 1
    assert "out_2.wav: No space left on device. Free some space" in err
    assert list(out.parent.iterdir()) == []


def test_output_names() -> None:
    assert output_paths(Path("a/b.flac"), 1) == [Path("a/b.flac")]
    assert output_paths(Path("a/b.flac"), 2) == [Path("a/b_1.flac"), Path("a/b_2.flac")]


def test_an_open_region_goes_to_the_end() -> None:
    assert parse_region("4:") == (4.0, None)
    assert parse_region("4:9.5") == (4.0, 9.5)
    for text in ("4", ":", ":3", "a:b", "-1:2", "3:3", "nan:3", "1:inf", "1:2:3"):
        with pytest.raises(UsageError, match="--region"):
            parse_region(text)


def test_intervals_of_guidance() -> None:
    assert parse_interval("0:1") == (0.0, 1.0)
    assert parse_interval("0.25:0.25") == (0.25, 0.25)
    for text in ("0.5:", "0:2", "-1:1", "1:0", "one:two"):
        with pytest.raises(UsageError, match="--cfg-interval"):
            parse_interval(text)


@pytest.mark.parametrize(
    ("duration", "said"), [("0.2", "its first 0.2 s are"), ("1", "silence follows"), ("0.5", None)]
)
def test_given_sound_that_is_cut_or_filled_up_is_named(
    generate: Callable[..., Any], tone: Path, duration: str, said: str | None
) -> None:
    status, _, err = generate("x", "--init-audio", str(tone), "--duration", duration)
    assert status == 0
    assert f"{tone} is 0.50 s: {said}" in err if said else str(tone) not in err


def test_an_adapter_without_the_stack_it_was_trained_on_plays_and_says_so(
    generate: Callable[..., tuple[int, str, str]], small_model: Path, tmp_path: Path, out: Path
) -> None:
    below, above = small_model / "adapter_dora-rows.safetensors", tmp_path / "above.safetensors"
    stack = stack_metadata([Stacked("vinyl", read_adapter(below).content_hash, 0.5)])
    adapter = read_adapter(small_model / "adapter_lora.safetensors")
    write_adapter(above, dataclasses.replace(adapter, metadata=stack))
    status, _, err = generate("a drone", "--adapter", str(above))
    assert status == 0
    assert "was trained on top of vinyl at strength 0.5, which is not played" in err
    out.unlink()
    status, _, err = generate("a drone", "--adapter", str(above), "--adapter", f"{below}=0.5")
    assert status == 0
    assert "trained on top of" not in err
