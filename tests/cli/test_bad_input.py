"""Every verb on input that cannot work: one message with the next step, and nothing left behind."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sa3lora.cli.main import main

Case = tuple[str, int, list[str]]  # arguments, status, what the message says
Fails = Callable[[str, int, list[str]], None]

_KNOWN = "Known names: tiny"
_AGAIN = "Copy or download it again"
_FULL = "No space left on device"
_MAKE_ROOM = "ree some space"


def _contents(root: Path) -> dict[str, tuple[int, int]]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


@pytest.fixture
def fails(
    inputs: Path,
    small_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Fails:
    """Check how the program ends on a line of arguments, and that it left every file alone."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    names = {
        "SMALL": str(small_model.resolve()),
        "MEDIUM": str(small_model.resolve().parent / "medium"),
    }
    monkeypatch.chdir(inputs)

    def check(line: str, status: int, said: list[str]) -> None:
        argv = [_expand(word, names) for word in line.split()]
        before = _contents(inputs)
        assert main(argv) == status
        message = capsys.readouterr().err
        kinds = re.findall(r"^(\w*Error): ", message, flags=re.MULTILINE)
        assert len(kinds) == 1, f"not exactly one message: {message}"
        assert (kinds[0] in ("UsageError", "Error")) == (status == 2), message
        for part in said:
            assert part in message
        assert "Traceback" not in message
        assert _contents(inputs) == before
        assert not list(inputs.glob("new*"))

    return check


def _expand(word: str, names: dict[str, str]) -> str:
    for name, value in names.items():
        word = word.replace(name, value)
    return "" if word == "''" else word


_PREP = "prep audio -o new --device cpu --quiet --model"
PREP: list[Case] = [
    ("prep nowhere -o new --model SMALL", 1, ["no folder nowhere", "Check the path"]),
    ("prep note.txt -o new --model SMALL", 1, ["note.txt is a file", "Give the folder"]),
    ("prep empty -o new --model SMALL", 1, ["no audio in empty", ".flac"]),
    ("prep zero -o new --model SMALL", 1, ["1.wav: 0 bytes", "--skip-broken"]),
    ("prep text -o new --model SMALL", 1, ["1.wav: no audio stream", "--skip-broken"]),
    ("prep cut -o new --model SMALL", 1, ["1.wav: truncated", "--skip-broken"]),
    ("prep zero -o latents --model SMALL", 1, ["latents holds other things", "another -o"]),
    (f"{_PREP} ''", 1, ["no model ''", _KNOWN]),
    (f"{_PREP} nothing", 1, ["no model 'nothing'", _KNOWN]),
    (f"{_PREP} note.txt", 1, ["note.txt is a file", "Give the folder"]),
    (f"{_PREP} small-music-base", 1, ["small-music-base is not on", "HF_HUB_OFFLINE", "connect"]),
    (f"{_PREP} models/no_config", 1, ["model_config.json is missing", "A model folder holds"]),
    (f"{_PREP} models/zero_config", 1, ["model_config.json: 0 bytes", "download the model again"]),
    (f"{_PREP} models/list_config", 1, ["layout of an SA3 model", "download the model again"]),
    (f"{_PREP} models/open_config", 1, ["not JSON", "download the model again"]),
    (f"{_PREP} models/empty_config", 1, ["lacks the key 'model'", "download the model again"]),
    (f"{_PREP} models/medium_config", 1, ["7 tensors differ", "Use both files of one model"]),
    (f"{_PREP} models/zero_weights", 1, ["model.safetensors is damaged", "Download it again"]),
    (f"{_PREP} models/cut_weights", 1, ["model.safetensors is damaged", "Download it again"]),
    (f"{_PREP} SMALL -o note.txt", 1, ["note.txt is a file", "Give -o a folder"]),
    (f"{_PREP} SMALL -o note.txt/new", 1, ["note.txt", "a part of it is a file"]),
    (f"{_PREP} SMALL -o audio", 1, ["audio holds other things", "another -o"]),
    (f"{_PREP} SMALL --segment-s nan", 2, ["--segment-s", "at least", "got nan"]),
    (f"{_PREP} SMALL --segment-s -1", 2, ["--segment-s", "at least", "got -1"]),
    (f"{_PREP} SMALL --min-s nan", 2, ["--min-s", "between", "got nan"]),
    (f"{_PREP} SMALL --validation nan", 2, ["--validation", "at least 0", "got nan"]),
    (f"{_PREP} SMALL --caption-template {{", 2, ["--caption-template '{'", "Write {{ and }}"]),
    (f"{_PREP} SMALL --dtype int8", 2, ["--dtype", "'float32'"]),
]

_TRAIN = "train mine/recipe.yaml --device cpu --quiet --name new"
TRAIN: list[Case] = [
    ("train nowhere.yaml", 1, ["no file 'nowhere.yaml'", "tiny_style"]),
    ("train tiny_styl", 1, ["no file 'tiny_styl'", "Did you mean tiny_style?"]),
    ("train latents", 1, ["latents is a folder", "tiny_style"]),
    ("train zero.yaml", 1, ["zero.yaml: 0 bytes", "copy a packaged one"]),
    ("train list.yaml", 1, ["list.yaml is no recipe", "expected keys such as"]),
    ("train open.yaml", 1, ["open.yaml is not valid YAML", "line"]),
    ("train binary.yaml", 1, ["binary.yaml is no recipe", "not UTF-8"]),
    ("train odd.yaml", 1, ["odd.yaml", "a key must be a word"]),
    ("train number.yaml", 1, ["number.yaml", "a key must be a word"]),
    ("train twice.yaml", 1, ["twice.yaml", "model is written twice"]),
    (f"{_TRAIN} adapter.lora_rank=4", 1, ["adapter.lora_rank", "did you mean adapter.r?"]),
    (f"{_TRAIN} adapter.r=abc", 1, ["adapter.r: must be a whole number, got 'abc'"]),
    (f"{_TRAIN} adapter.r=true", 1, ["adapter.r: must be a number, got True"]),
    (f"{_TRAIN} optim.lr=nan", 1, ["optim.lr: must be a finite number"]),
    (f"{_TRAIN} train.max_steps=-1 optim.lr=0", 1, ["2 problems", "train.max_steps", "optim.lr"]),
    (f"{_TRAIN} train.max_steps.x=1", 2, ["max_steps is not a section"]),
    (f"{_TRAIN} novalue", 2, ["'novalue' is no override", "Write KEY=VALUE"]),
    (f"{_TRAIN} adapter.include=[nothing]", 1, ["'nothing' matches no layer", "called"]),
    (f"{_TRAIN} adapter.exclude=[.]", 1, ["leave none of", "Loosen"]),
    (f"{_TRAIN} adapter.from=gone.safetensors", 1, ["gone.safetensors: no such", "Check the path"]),
    (f"{_TRAIN} adapter.from=zero.safetensors", 1, ["zero.safetensors: 0 bytes", _AGAIN]),
    (f"{_TRAIN} adapter.from=bora.safetensors", 1, ["bora.safetensors is bora", "To go on with"]),
    (f"{_TRAIN} model=nothing", 1, ["no model 'nothing'", _KNOWN]),
    (f"{_TRAIN} model=MEDIUM", 1, ["latents of", "medium has another", "prepare the audio again"]),
    (f"{_TRAIN} model=models/no_words", 1, ["no_words holds no text encoder", "connect once"]),
    (f"{_TRAIN} model=models/cut_words", 1, ["could not be loaded", "Copy or download"]),
    (f"{_TRAIN} data.root=nowhere", 1, ["no folder nowhere", "sa3lora prep"]),
    (f"{_TRAIN} data.root=note.txt", 1, ["note.txt is a file", "Give the folder"]),
    (f"{_TRAIN} data.root=audio", 1, ["audio is not a latents dataset", "sa3lora prep"]),
    (f"{_TRAIN} data.root=other", 1, ["this dataset holds latents of", "prepare the audio again"]),
    (f"{_TRAIN} data.root=sets/no_meta", 1, ["no_meta is not a latents dataset", "sa3lora prep"]),
    (f"{_TRAIN} data.root=sets/zero_meta", 1, ["dataset.json is damaged", "prep again"]),
    (f"{_TRAIN} data.root=sets/list_meta", 1, ["dataset.json does not describe", "prep again"]),
    (f"{_TRAIN} data.root=sets/odd_meta", 1, ["value of counts", "prep again"]),
    (f"{_TRAIN} data.root=sets/no_shard", 1, ["shard-0-0.arrow", "prep again"]),
    (f"{_TRAIN} data.root=sets/zero_shard", 1, ["shard-0-0.arrow is damaged", "prep again"]),
    (f"{_TRAIN} data.root=sets/zero_silence", 1, ["silence.safetensors is damaged", "prep again"]),
    (f"{_TRAIN} data.split=test", 1, ["latents has no clip in its test split", "data.split"]),
    (f"{_TRAIN} --name taken", 1, ["taken exists already", "another --name"]),
    (f"{_TRAIN} --name a/b", 1, ["'a/b' is no name for a run", "plain folder name"]),
    (f"{_TRAIN} --resume", 1, ["no run 'new'", "start it anew"]),
    (f"{_TRAIN} --name .. --resume", 1, ["'..' is no name for a run", "plain folder name"]),
    ("train mine/recipe.yaml --resume", 2, ["--resume needs the name", "--name NAME"]),
]  # fmt: skip

_GENERATE = "generate x -o new.wav --device cpu --quiet --steps 1 --duration 0.2"
_SMALL = f"{_GENERATE} --model SMALL"
GENERATE: list[Case] = [
    (f"{_SMALL} --adapter nowhere", 1, ["nowhere: no such file", "Check the path"]),
    (f"{_SMALL} --adapter audio", 1, ["audio is a folder", "Name an adapter file"]),
    (f"{_SMALL} --adapter note.txt", 1, ["note.txt: not a checkpoint", "Name an adapter"]),
    (f"{_SMALL} --adapter audio/0.wav", 1, ["0.wav: not a checkpoint", "Name an adapter"]),
    (f"{_SMALL} --adapter zero.safetensors", 1, ["zero.safetensors: 0 bytes", _AGAIN]),
    (f"{_SMALL} --adapter cut.safetensors", 1, ["cut.safetensors", "truncated", _AGAIN]),
    (f"{_SMALL} --adapter head.safetensors", 1, ["head.safetensors", "cut short", _AGAIN]),
    (f"{_SMALL} --adapter text.safetensors", 1, ["text.safetensors: not a safetensors", _AGAIN]),
    (f"{_SMALL} --adapter table.safetensors", 1, ["table.safetensors: not a saf", _AGAIN]),
    (f"{_SMALL} --adapter none.safetensors", 1, ["holds no adapter tensors", "Name an adapter"]),
    (f"{_SMALL} --adapter SMALL/model.safetensors", 1, ["a model, maybe", "Name an adapter"]),
    (f"{_SMALL} --adapter =1", 2, ["an adapter has no path", "PATH=STRENGTH"]),
    (f"{_SMALL} --adapter good.safetensors=abc", 2, ["must be a number, got 'abc'", "PATH=0.7"]),
    (f"{_SMALL} --adapter good.safetensors=nan", 2, ["must be finite, got nan", "PATH=0.7"]),
    (f"{_SMALL} --adapter m.safetensors", 1, ["m.safetensors does not fit small", "trained on"]),
    (f"{_GENERATE} --model MEDIUM --adapter good.safetensors", 1,
     ["good.safetensors was trained on small, this pipeline is medium", "Load small"]),
    (f"{_GENERATE} --adapter m.safetensors", 2, ["m.safetensors does not tell", "pass --model"]),
    (f"{_GENERATE} --model models/zero_words", 1, ["could not be loaded", "Copy or download"]),
    (f"{_GENERATE} --model models/list_words", 1, ["could not be loaded", "Copy or download"]),
    (f"{_SMALL} --init-audio nowhere.wav", 1, ["nowhere.wav: no such file", "Check the path"]),
    (f"{_SMALL} --init-audio audio", 1, ["audio: is a folder", "Name one of its files"]),
    (f"{_SMALL} --init-audio zero/1.wav", 1, ["1.wav: 0 bytes", "Repair or replace"]),
    (f"{_SMALL} --init-audio text/1.wav", 1, ["1.wav: no audio stream", "Repair or replace"]),
    (f"{_SMALL} --duration nan", 2, ["duration must be above 0 and at most", "got nan"]),
    (f"{_SMALL} --duration -1", 2, ["duration must be above 0 and at most", "got -1"]),
    (f"{_SMALL} --guidance-scale nan", 2, ["guidance_scale must be finite"]),
    (f"{_SMALL} --apg-scale nan", 2, ["apg_scale must be finite"]),
    (f"{_SMALL} --seed -1", 2, ["--seed", "greater than or equal to 0"]),
    (f"{_SMALL} --out audio/0.wav", 2, ["0.wav exists already", "Pass --force"]),
    (f"{_SMALL} --out note.txt/new.wav", 1, ["note.txt", "a part of it is a file"]),
]  # fmt: skip

_EVALUATE = "evaluate good.safetensors --n 2 --duration-s 0.6 --steps 1 --device cpu -q --out new"
_SCORE = f"{_EVALUATE} --model SMALL --reference audio"
EVALUATE: list[Case] = [
    (f"{_EVALUATE} --reference nowhere", 2, ["nowhere: no such folder", "Check the path"]),
    (f"{_EVALUATE} --model SMALL --reference empty", 1, ["empty holds no audio", "Name another"]),
    (f"{_EVALUATE} --model SMALL --reference zero", 1, ["1.wav: 0 bytes", "Repair or replace"]),
    (f"{_EVALUATE} --model SMALL --reference other", 1, ["holds latents of", "prepare the audio"]),
    (f"{_EVALUATE} --model MEDIUM --reference audio", 1, ["trained on small", "Load small"]),
    ("evaluate cut.safetensors --reference audio", 1, ["cut.safetensors", "truncated", _AGAIN]),
    (f"{_SCORE} --prompts nowhere.txt", 1, ["no file 'nowhere.txt'", "music"]),
    (f"{_SCORE} --prompts good.safetensors", 1, ["good.safetensors is no list", "not UTF-8"]),
    (f"{_SCORE} --embedder nothing", 1, ["nothing: no such embedding model", "Give tiny"]),
    (f"{_SCORE} --embedder clap.pt", 1, ["clap.pt: not a readable LAION", "Download it again"]),
    (f"{_SCORE} --dataset nowhere", 1, ["no folder nowhere", "sa3lora prep"]),
    (f"{_SCORE} --duration-s 99", 1, ["makes up to 1.024 s, got 99 s"]),
    (f"{_SCORE} --duration-s 0.1", 1, ["clips of 0.1 s cannot be embedded", "longer"]),
    (f"{_SCORE} --guidance-scale nan", 2, ["--guidance-scale must be a finite number"]),
    (f"{_SCORE} --n 1", 2, ["--n", "greater than or equal to 2"]),
    (f"{_SCORE} --out audio", 1, ["audio holds other files", "another folder with -o"]),
    (f"{_SCORE} --out note.txt", 1, ["note.txt is a file", "another folder with -o"]),
]

_MERGE = "merge good.safetensors -o new.safetensors"
_INTO = "merge good.safetensors -o new --into-base --model"
MERGE: list[Case] = [
    ("merge nowhere=0.5 -o new.safetensors", 1, ["nowhere: no such file", "Check the path"]),
    ("merge zero.safetensors -o new.safetensors", 1, ["zero.safetensors: 0 bytes", _AGAIN]),
    ("merge good.safetensors=0 -o new.safetensors", 1, ["every strength is 0", "Give one"]),
    (f"{_MERGE} bora.safetensors", 1, ["bora and lora do together", "--into-base"]),
    (f"{_MERGE} m.safetensors", 1, ["models of other sizes", "adapters of one base"]),
    (f"{_MERGE} --model MEDIUM", 1, ["good.safetensors was trained on small", "Load small"]),
    ("merge good.safetensors -o good.safetensors", 2, ["exists already", "--force"]),
    ("merge good.safetensors -o new.txt", 1, ["NAME.safetensors", "another name"]),
    ("merge good.safetensors -o note.txt/a.safetensors", 1, ["note.txt", "may be a file"]),
    (f"{_INTO} MEDIUM", 1, ["good.safetensors was trained on small", "Load small"]),
    (f"{_INTO} nothing", 1, ["no model 'nothing'", _KNOWN]),
    (f"{_INTO} SMALL -o note.txt", 2, ["note.txt exists already", "--force"]),
    (f"{_INTO} SMALL -o note.txt --force", 1, ["note.txt is no model folder", "another name"]),
    (f"{_INTO} SMALL -o audio --force", 1, ["audio is no model folder", "another name"]),
]

INSPECT: list[Case] = [
    ("inspect nowhere", 2, ["nowhere does not exist", "Check the path"]),
    ("inspect audio", 2, ["audio is neither", "Name one of these"]),
    ("inspect note.txt", 2, ["note.txt is neither", "Name one of these"]),
    ("inspect zero.safetensors", 1, ["zero.safetensors: 0 bytes", _AGAIN]),
    ("inspect good.safetensors --model nothing", 1, ["no model 'nothing'", _KNOWN]),
    ("inspect good.safetensors --model MEDIUM", 1, ["does not fit medium", "trained on"]),
    ("inspect models/cut_weights", 1, ["model.safetensors is damaged", "Download it again"]),
    ("inspect sets/odd_meta", 1, ["value of counts", "prep again"]),
    ("validate nowhere", 2, ["nowhere does not exist", "Check the path"]),
    ("validate mine/recipe.yaml --values", 2, ["--values belongs to adapters", "leave it out"]),
    ("models download nothing", 2, ["no model 'nothing'", _KNOWN]),
    ("models random nothing -o new", 2, ["no model 'nothing'", _KNOWN]),
    ("models random tiny -o audio", 1, ["audio"]),
    ("models random tiny -o note.txt", 1, ["note.txt"]),
    ("models frobnicate", 2, ["No such command 'frobnicate'", "--help"]),
]


@pytest.mark.parametrize(
    "case", [*PREP, *TRAIN, *GENERATE, *EVALUATE, *MERGE, *INSPECT], ids=lambda case: case[0]
)
def test_bad_input_is_one_message_and_leaves_nothing(fails: Fails, case: Case) -> None:
    fails(*case)


@pytest.mark.parametrize("verb", [f"{_PREP} SMALL", _TRAIN, _SMALL, _SCORE])
def test_a_device_that_is_not_there_is_wrong_usage(fails: Fails, verb: str) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    fails(f"{verb} --device cuda", 2, ["--device cuda", "It can use"])


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("zero.safetensors", "0 bytes"),
        ("cut.safetensors", "truncated"),
        ("models/zero_config", "model_config.json: 0 bytes"),
        ("models/cut_weights", "model.safetensors is damaged"),
        ("sets/odd_meta", "value of counts"),
        ("sets/zero_shard", "shard-0-0.arrow is damaged"),
        ("zero.yaml", "0 bytes"),
        ("odd.yaml", "a key must be a word"),
    ],
)
def test_validate_lists_what_is_broken_and_ends_with_1(
    inputs: Path, capsys: pytest.CaptureFixture[str], path: str, problem: str
) -> None:
    assert main(["validate", str(inputs / path)]) == 1
    told = capsys.readouterr()
    assert "has 1 problem\n" in told.out
    assert problem in told.out
    assert told.err == ""


@pytest.mark.parametrize(
    "case",
    [
        (f"{_PREP} SMALL", 1, [_FULL, "ake room"]),
        (_TRAIN, 1, ["latents", _FULL, "make room"]),
        (_SMALL, 1, ["new.wav", _FULL, _MAKE_ROOM]),
        (_SCORE, 1, ["new", _FULL, _MAKE_ROOM]),
        (_MERGE, 1, ["new.safetensors", _FULL, _MAKE_ROOM]),
        (f"{_INTO} SMALL --allow-other-base", 1, ["new", _FULL, _MAKE_ROOM]),
        ("models random tiny -o new", 1, ["new", _FULL, _MAKE_ROOM]),
    ],
    ids=lambda case: case[0],
)
def test_a_full_disk_is_one_message_and_leaves_nothing(
    fails: Fails, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    fails(*case)
