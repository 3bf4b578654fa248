from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile

from sa3lora.cli.main import main
from sa3lora.latents.format import LatentsDataset


@pytest.fixture
def tracks(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "my tracks"
    folder.mkdir()
    for number in range(4):
        soundfile.write(folder / f"0{number} été.wav", 0.1 * rng.standard_normal((3200, 2)), 8000)
    return folder


@pytest.fixture
def run(tracks, tmp_path, small_model, capsys):
    def call(*options):
        out = tmp_path / "set"
        command = ["prep", str(tracks), "-o", str(out), "--model", str(small_model), *options]
        status = main([*command, "--device", "cpu", "--quiet"])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def test_prep_reports_on_stdout_and_writes_a_dataset(run, tmp_path):
    status, out, err = run("--caption-template", "{words}, loud")
    assert (status, err) == (0, "")
    rows = [line.split() for line in out.splitlines()]
    assert ["clips", "4", "1.6", "s"] in rows
    assert ["validation", "1", "0.4", "s"] in rows
    assert ["captions:", "template", "4"] in rows
    assert LatentsDataset.open(tmp_path / "set").captions == ["été, loud"] * 4


def test_prep_gives_json(run):
    status, out, _ = run("--caption-template", "{stem}", "--validation", "0.5", "--json")
    result = json.loads(out)
    assert status == 0
    assert (result["encoded"], result["kept"], result["counts"]["validation"]) == (4, 0, 2)
    assert json.loads(run("--caption-template", "{stem}", "--validation", "0.5", "--json")[1]) == {
        **result, "encoded": 0, "kept": 4
    }  # fmt: skip


def test_files_without_captions_are_one_message_and_status_1(run, tmp_path):
    status, out, err = run()
    assert (status, out) == (1, "")
    assert err.startswith("DatasetError: 4 of 4 files have no caption:\n  00 été.wav: no caption")
    assert not (tmp_path / "set").exists()


def test_a_broken_file_is_status_1_and_skipped_is_status_0(run, tracks):
    (tracks / "zero.wav").touch()
    status, _, err = run("--caption-template", "x")
    assert status == 1
    assert "1 of 5 files cannot be used:\n  zero.wav: 0 bytes" in err
    status, _, err = run("--caption-template", "x", "--skip-broken")
    assert status == 0
    assert "skipped: zero.wav: 0 bytes\nskipped 1 of 5" in err


def test_a_model_is_wanted(tracks, tmp_path, capsys):
    assert main(["prep", str(tracks), "-o", str(tmp_path / "set")]) == 2
    assert "--model" in capsys.readouterr().err


def test_wrong_lengths_are_wrong_usage(run):
    status, _, err = run("--caption-template", "x", "--segment-s", "60")
    assert status == 2
    assert err == "UsageError: --segment-s must be at most the model's 1.024 s, got 60\n"


def test_a_missing_folder_is_named(tmp_path, small_model, capsys):
    missing = tmp_path / "none"
    status = main(["prep", str(missing), "-o", str(tmp_path / "s"), "--model", str(small_model)])
    assert (status, capsys.readouterr().err) == (
        1,
        f"DatasetError: there is no folder {missing}. Check the path.\n",
    )
