from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from sa3lora.errors import RunError
from sa3lora.runs import RunFolder, sha256_file, write_bytes_atomic, write_json_atomic


def fill_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)


def test_a_written_file_holds_exactly_the_bytes(tmp_path: Path) -> None:
    write_bytes_atomic(tmp_path / "new" / "a.bin", b"\x00\xffabc")
    assert (tmp_path / "new" / "a.bin").read_bytes() == b"\x00\xffabc"
    assert os.listdir(tmp_path / "new") == ["a.bin"]


def test_a_full_disk_leaves_the_earlier_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.bin"
    write_bytes_atomic(path, b"before")
    fill_the_disk(monkeypatch)
    with pytest.raises(OSError, match="No space left") as caught:
        write_bytes_atomic(path, b"after")
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_crash_between_write_and_rename_leaves_the_earlier_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.bin"
    write_bytes_atomic(path, b"before")

    def crash(source: object, target: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        write_bytes_atomic(path, b"after")
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_the_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    write_bytes_atomic(tmp_path / "atomic", b"")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_path_through_a_file_names_itself_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match=r"file/a\.json") as caught:
        write_json_atomic(tmp_path / "file" / "a.json", {})
    assert caught.value.filename == str(tmp_path / "file" / "a.json")


def test_json_keeps_accents_and_refuses_what_json_lacks(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json_atomic(path, {"title": "Café", "n": [1, 2.5, None]})
    assert '"title": "Café"' in path.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json_atomic(path, {"loss": float("nan")})
    assert "Café" in path.read_text(encoding="utf-8")


def test_the_hash_is_sha256_of_the_whole_file(tmp_path: Path) -> None:
    data = bytes(range(256)) * 4096
    (tmp_path / "big").write_bytes(data)
    assert sha256_file(tmp_path / "big") == hashlib.sha256(data).hexdigest()


def test_a_taken_name_says_how_to_go_on(tmp_path: Path) -> None:
    RunFolder.create("vinyl", root=tmp_path)
    with pytest.raises(RunError, match=r"vinyl exists already\. Pass --resume .* --name"):
        RunFolder.create("vinyl", root=tmp_path)


def test_runs_without_a_name_never_meet(tmp_path: Path) -> None:
    names = {RunFolder.create(None, root=tmp_path / "runs").name for _ in range(3)}
    assert len(names) == 3
    assert names == set(os.listdir(tmp_path / "runs"))


@pytest.mark.parametrize("name", ["", ".", "..", "../up", "a/b", ".hidden", "a\\b", " a", "c:"])
def test_a_name_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunError, match="is no name for a run"):
        RunFolder.create(name, root=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_run_opens_by_name_and_by_path(tmp_path: Path) -> None:
    made = RunFolder.create("vinyl", root=tmp_path)
    made.recipe_path.write_text("model: tiny\n")
    assert RunFolder.open("vinyl", root=tmp_path).path == made.path
    assert RunFolder.open(made.path).path == made.path


def test_an_unknown_run_lists_the_runs_there_are(tmp_path: Path) -> None:
    RunFolder.create("vinyl", root=tmp_path).recipe_path.write_text("model: tiny\n")
    (tmp_path / "no-run").mkdir()
    with pytest.raises(RunError, match=r"no run 'vynil'\. Runs in .*: vinyl\. Name one"):
        RunFolder.open("vynil", root=tmp_path)
    with pytest.raises(RunError, match="nowhere has none"):
        RunFolder.open("vinyl", root=tmp_path / "nowhere")


def test_folders_appear_when_they_are_asked_for(tmp_path: Path) -> None:
    run = RunFolder.create("vinyl", root=tmp_path)
    assert os.listdir(run.path) == []
    for folder in (run.checkpoints, run.previews, run.evaluation):
        assert folder.is_dir()
    assert sorted(os.listdir(run.path)) == ["checkpoints", "evaluation", "previews"]


def test_a_manifest_comes_back_as_it_was_written(tmp_path: Path) -> None:
    run = RunFolder.create("vinyl", root=tmp_path)
    with pytest.raises(RunError, match=r"has no manifest\.json"):
        run.manifest()
    run.write_manifest({"step": 200, "loss": 0.25})
    assert run.manifest() == {"step": 200, "loss": 0.25}
    run.manifest_path.write_text("[1, 2")
    with pytest.raises(RunError, match=r"manifest\.json is damaged"):
        run.manifest()
    run.manifest_path.write_text("[1, 2]")
    with pytest.raises(RunError, match="expected a JSON object"):
        run.manifest()
