import json
import shutil

import pytest
import yaml

from sa3lora.adapters.files import AdapterFile, read_adapter, write_adapter
from sa3lora.adapters.header import build_metadata
from sa3lora.adapters.share import push_folder, upload_arguments, write_share_folder
from sa3lora.cli.main import main
from sa3lora.errors import AdapterError

BASE = "small-music-base"


def evaluation(adapter, *, strength, verdict, content_hash=None):
    estimate = {"value": 2.5, "low": 2.0, "high": 3.0}
    context = {"embedder": "tiny CLAP", "window_s": 2.0, "num_clips": 16, "reference": "latents",
               "reference_hash": "abcdef0123456789"}  # fmt: skip
    return {
        "adapters": [{"strength": strength, "content_hash": content_hash or adapter.content_hash}],
        "scores": [{"title": "FAD", "base": estimate, "adapter": {**estimate, "value": 1.5},
                    "verdict": verdict, "context": context}],
        "clips": [{"base": "clips/1b.wav", "adapter": "../../../secret.wav"}],
    }  # fmt: skip


@pytest.fixture
def run(small_model, tmp_path):
    """A run folder as training and evaluation leave it."""
    folder = tmp_path / "runs" / "vinyl"
    plain = read_adapter(small_model / "adapter_lora.safetensors")
    metadata = build_metadata(
        base_id=BASE, dit_hash="h" * 64, dataset="f" * 64, recipe="adapter: {r: 3}\n", step=200,
        trigger="vinyl crackle", licence="CC-BY-4.0", title="Vinyl", tags=["lofi"],
    )  # fmt: skip
    adapter = AdapterFile(plain.config, plain.tensors, metadata)
    write_adapter(folder / "adapter.safetensors", adapter)
    from sa3lora.runs import sha256_file

    manifest = {"dataset": {"clips": 12, "seconds": {"train": 90.0}},
                "adapter": {"sha256": sha256_file(folder / "adapter.safetensors")}}  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "previews").mkdir()
    for name in ("01-base", "01-step-00000100", "01-step-00000200"):
        (folder / "previews" / f"{name}.wav").write_bytes(name.encode())
    (tmp_path / "secret.wav").write_bytes(b"secret")
    return folder, adapter


def add_evaluation(folder, name, content):
    target = folder / "evaluation" / name
    (target / "clips").mkdir(parents=True)
    (target / "clips" / "1b.wav").write_bytes(b"base")
    (target / "evaluation.json").write_text(json.dumps(content))


def test_a_card_tells_all_there_is(run, make_latents, tmp_path, capsys):
    folder, adapter = run
    good, bad = "FAD: the adapter is better (-1)", "FAD: the adapter is worse (+1)"
    for strength, verdict in ((0.5, good), (1.0, good), (2.0, bad)):
        content = evaluation(adapter, strength=strength, verdict=verdict)
        add_evaluation(folder, f"s{strength}", content)
    add_evaluation(
        folder, "other", evaluation(adapter, strength=1.0, verdict=good, content_hash="x")
    )
    out, data = tmp_path / "card", make_latents(tmp_path / "data")
    assert main(["card", str(folder), "--data", str(data), "-o", str(out)]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{out}\n"
    assert "other/evaluation.json is about another adapter" in captured.err
    text = (out / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front["base_model"] == "stabilityai/stable-audio-3-small-music-base"
    assert front["base_model_relation"] == "adapter"
    assert front["instance_prompt"] == "vinyl crackle"
    assert {"lora", "stable-audio-3", "lofi"} <= set(front["tags"])
    for part in (
        "| trigger words | vinyl crackle |", "0.5 to 1 (measured at 0.5, 1, 2)", "adapter: {r: 3}",
        "6 clips of 3 files", "| unknown | 6 |", "tiny CLAP, windows of 2 s, n = 16",
        "CC-BY-4.0", adapter.content_hash, "2.5 (2 to 3)",
    ):  # fmt: skip
        assert part in text
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()) == [
        "README.md", "SHA256SUMS", "adapter.safetensors", "samples/01-base.wav",
    ]  # fmt: skip
    assert str(tmp_path) not in text
    assert main(["verify", str(out)]) == 0


def test_what_is_not_known_is_said(small_model, tmp_path, capsys):
    shutil.copy(small_model / "adapter_lora.safetensors", tmp_path / "a.safetensors")
    out = tmp_path / "card"
    assert main(["card", str(tmp_path / "a.safetensors"), "-o", str(out)]) == 0
    text = (out / "README.md").read_text()
    for part in ("# a\n", "base model | not told", "## Scores\n\nNot measured.", "Not told."):
        assert part in text


def test_previews_of_the_last_step_are_the_samples(run, tmp_path, capsys):
    folder, _ = run
    assert main(["card", str(folder), "-o", str(tmp_path / "card")]) == 0
    assert (tmp_path / "card/samples/01-adapter.wav").read_bytes() == b"01-step-00000200"
    assert "12 clips, 1.5 minutes." in (tmp_path / "card/README.md").read_text()
    assert "--data DATASET adds them" in capsys.readouterr().err


def test_a_card_shows_the_step_that_was_written_and_says_why(run, tmp_path):
    folder, _ = run
    for name in ("00-ground-truth", "01-few-step-00000100"):
        (folder / "previews" / f"{name}.wav").write_bytes(name.encode())
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["adapter"] |= {"step": 100, "reason": "step 100 has the lowest held-out loss"}
    path.write_text(json.dumps(manifest | {"overfits_since": 150}))
    out = tmp_path / "card"
    assert main(["card", str(folder), "-o", str(out)]) == 0
    text = (out / "README.md").read_text()
    assert "| why this step | step 100 has the lowest held-out loss; the run overfitted" in text
    samples = {file.name: file.read_bytes() for file in (out / "samples").iterdir()}
    assert samples == {"01-base.wav": b"01-base", "01-adapter.wav": b"01-step-00000100"}


def test_verify_finds_every_change(run, tmp_path, capsys):
    folder, _ = run
    out = tmp_path / "card"
    assert main(["card", str(folder), "-o", str(out)]) == 0
    (out / "README.md").write_text("changed")
    (out / "samples/01-base.wav").unlink()
    (out / "more.txt").write_text("more")
    capsys.readouterr()
    assert main(["verify", str(out), "--json"]) == 1
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert [problem.split(",")[0] for problem in problems] == [
        "samples/01-base.wav: missing", "README.md: changed", "more.txt: not listed",
    ]  # fmt: skip


def test_verify_of_a_run_compares_its_adapter_with_the_manifest(run, capsys):
    folder, adapter = run
    assert main(["verify", str(folder)]) == 0
    write_adapter(
        folder / "adapter.safetensors", AdapterFile(adapter.config, adapter.tensors), overwrite=True
    )
    assert main(["verify", str(folder)]) == 1
    assert "adapter.safetensors: changed" in capsys.readouterr().out


def test_other_folders_have_nothing_to_verify(tmp_path, capsys):
    assert main(["verify", str(tmp_path)]) == 2
    assert "has neither SHA256SUMS nor manifest.json" in capsys.readouterr().err


def test_only_an_earlier_card_is_replaced(run, tmp_path, capsys):
    folder, _ = run
    out = tmp_path / "card"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    assert main(["card", str(folder), "-o", str(out)]) == 1
    assert main(["card", str(folder), "-o", str(out), "--force"]) == 1
    assert "holds other things, which would be lost" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


def test_an_upload_is_of_the_whole_folder_to_a_model_repository(tmp_path):
    assert upload_arguments(tmp_path / "card", "me/vinyl") == {
        "repo_id": "me/vinyl", "repo_type": "model", "folder_path": str(tmp_path / "card"),
        "commit_message": "Upload card with sa3lora",
    }  # fmt: skip


def test_a_push_makes_the_repository_and_uploads(tmp_path, monkeypatch):
    import huggingface_hub

    write_share_folder(tmp_path / "card", readme="# card", files={})
    calls = []

    class Api:
        def create_repo(self, repo_id, **options):
            calls.append(("create", repo_id, options))
            return f"https://huggingface.co/{repo_id}"

        def upload_folder(self, **options):
            calls.append(("upload", options["repo_id"], options))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    address = push_folder(tmp_path / "card", "me/vinyl", private=True)
    assert address == "https://huggingface.co/me/vinyl"
    assert [call[:2] for call in calls] == [("create", "me/vinyl"), ("upload", "me/vinyl")]
    assert calls[0][2] == {"repo_type": "model", "private": True, "exist_ok": True}
    (tmp_path / "card/README.md").write_text("changed")
    with pytest.raises(AdapterError, match="is not as it was written"):
        push_folder(tmp_path / "card", "me/vinyl")


def test_without_a_network_the_folder_stays_and_the_message_helps(run, tmp_path, capsys):
    folder, _ = run
    out = tmp_path / "card"
    assert main(["card", str(folder), "-o", str(out), "--push", "me/vinyl"]) == 1
    message = capsys.readouterr().err
    assert "me/vinyl could not be written" in message
    assert "hf auth login" in message
    assert main(["verify", str(out)]) == 0
    assert main(["card", str(folder), "-o", str(tmp_path / "b"), "--push", "vinyl"]) == 1
    assert "--push takes a Hub repository as OWNER/NAME" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
