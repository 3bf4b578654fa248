"""Write damaged adapters, read each, and tell what came of it. Run as a program of its own, so that
its memory is its own: `fuzz_corpus.py FOLDER COUNT SEED` prints one JSON object.
"""

from __future__ import annotations

import json
import random
import resource
import shutil
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sa3lora.adapters.config import TENSORS, AdapterConfig
from sa3lora.adapters.files import AdapterFile, read_adapter, validate_adapter, write_adapter
from sa3lora.adapters.peft_write import write_diffusers_folder, write_peft_folder
from sa3lora.errors import Sa3LoraError

SITES = {
    "model.transformer.layers.0.self_attn.to_qkv": (40, 8),
    "model.transformer.layers.0.cross_attn.to_out": (8, 8),
    "conditioners.seconds_total.embedder.embedding.1": (6, 8),
}
NASTY: list[Any] = [
    None, True, -1, 0, 1, 2**31, 2**63, 2**64, 10**30, 10**4000, 1.5, float("nan"), float("inf"),
    1e308, "", "x", "F32", "F9", "\u0000", "\ud800", "a" * 10_000, [], [[]], {}, {"a": {}},
    [-1, -1], [0, 2**40], [2**40] * 8, [2**62] * 9, [1] * 5000, [[1, 2], [3]],
    "layers.[0-99999999]",
    ["[0-9][0-9][0-9][0-9][0-9][0-9][0-9]" * 9], ["a"] * 100_000, "dora", "bora-xs", "LOKR",
    "(a+)+$", {"(a+)+$": 1}, {"x" * 600: 2}, {"[": 3}, {"model": -1},
]  # fmt: skip


def make_adapter(kind: str) -> AdapterFile:
    tensors = {}
    for site, (fan_out, fan_in) in SITES.items():
        known = {
            "lora_A": torch.randn(3, fan_in), "lora_B": torch.randn(fan_out, 3),
            "M_xs": torch.randn(3, 3), "magnitude_r": torch.rand(fan_out),
            "magnitude_c": torch.rand(fan_in), "U": torch.randn(fan_out, 3),
            "magnitude": torch.rand(fan_out if "rows" in kind else fan_in),
            "V": torch.randn(fan_in, 3),
        }  # fmt: skip
        bases = ("U", "V") if kind.endswith("-xs") else ()
        tensors[site] = {name: known[name] for name in (*TENSORS[kind], *bases)}
    return AdapterFile(AdapterConfig(type=kind, r=3), tensors, {"sa3lora.base_id": "tiny"})


def write_seeds(folder: Path) -> list[Path]:
    seeds = []
    for kind in TENSORS:
        write_adapter(folder / f"{kind}.safetensors", make_adapter(kind))
        seeds.append(folder / f"{kind}.safetensors")
    lora, dora = make_adapter("lora"), make_adapter("dora-rows")
    write_peft_folder(folder / "peft", dora, kernels={})
    write_diffusers_folder(folder / "diffusers", lora, kernels={})
    state = {
        f"{site}.parametrizations.weight.0.{name}": tensor
        for site, group in lora.tensors.items()
        for name, tensor in group.items()
    }
    torch.save({"state_dict": state, "lora_config": {"rank": 3, "alpha": 3}}, folder / "old.ckpt")
    flat = {}
    for site, group in lora.tensors.items():
        name = f"lora_unet_{site.replace('.', '_')}"
        flat |= {f"{name}.lora_down.weight": group["lora_A"], f"{name}.alpha": torch.tensor(2.0)}
        flat[f"{name}.lora_up.weight"] = group["lora_B"]
    from sa3lora.adapters.container import write_file

    write_file(folder / "kohya.safetensors", flat, {"ss_network_dim": "3"})
    return [*seeds, folder / "peft", folder / "diffusers", folder / "old.ckpt",
            folder / "kohya.safetensors"]  # fmt: skip


def flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    end = len(changed) if rng.random() < 0.3 else min(len(changed), 2000)
    for _ in range(rng.choice([1, 2, 8, 64])):
        changed[rng.randrange(end)] = rng.randrange(256)
    return bytes(changed)


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def grow(data: bytes, rng: random.Random) -> bytes:
    return data + rng.randbytes(rng.choice([1, 8, 4096]))


def length(data: bytes, rng: random.Random) -> bytes:
    claimed = rng.choice([0, 1, 2**20, 2**31, 2**63, 2**64 - 1, len(data), len(data) - 8])
    return claimed.to_bytes(8, "little") + data[8:]


def nest(data: bytes, rng: random.Random) -> bytes:
    opening = rng.choice([b"[", b'{"a":', b"[[],"])
    text = opening * (rng.choice([2_000, 200_000, 3_000_000]) // len(opening))
    return len(text).to_bytes(8, "little") + text + data


def header(data: bytes, rng: random.Random) -> bytes:
    """Replace one value of the header by a nasty one, anywhere."""
    size = int.from_bytes(data[:8], "little")
    content = json.loads(data[8 : 8 + size])
    if rng.random() < 0.5 and "lora_config" in content.get("__metadata__", {}):
        config = json.loads(content["__metadata__"]["lora_config"])
        spoil(config, rng)
        content["__metadata__"]["lora_config"] = json.dumps(config)
    else:
        spoil(content, rng)
    text = json.dumps(content).encode("utf-8", "surrogatepass")
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def spoil(value: Any, rng: random.Random) -> None:
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys:
            return
        key = rng.choice(keys)
        if isinstance(value[key], dict | list) and value[key] and rng.random() < 0.7:
            value = value[key]
            continue
        if isinstance(value, dict) and rng.random() < 0.2:
            value[rng.choice(["", "a.b", "x" * 3000, "\u202e", key + "0"])] = value.pop(key)
        else:
            value[key] = rng.choice(NASTY)
        return


BINARY: list[Callable[[bytes, random.Random], bytes]] = [flip, cut, grow, length, nest, header]


def damage(path: Path, rng: random.Random) -> None:
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        path = rng.choice(files)
    if path.suffix == ".json":
        content = json.loads(path.read_text())
        spoil(content, rng)
        path.write_bytes(json.dumps(content).encode("utf-8", "surrogatepass"))
    elif path.suffix == ".ckpt":
        damage_pickle(path, rng)
    else:
        path.write_bytes(rng.choice(BINARY)(path.read_bytes(), rng))


def damage_pickle(path: Path, rng: random.Random) -> None:
    if rng.random() < 0.4:
        path.write_bytes(rng.choice([flip, cut])(path.read_bytes(), rng))
        return
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in members if name.endswith("/data.pkl"))
    members[name] = flip(members[name], rng)
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)


def run(folder: Path, *, count: int, seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    seeds = write_seeds(folder)
    for path in seeds:
        assert validate_adapter(path, check_values=True) == []
        read_adapter(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused, slowest, odd = 0, 0.0, []
    for number in range(count):
        source = rng.choice(seeds)
        target = folder / f"case{source.suffix}"
        shutil.rmtree(target, ignore_errors=True)
        target.unlink(missing_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
        damage(target, rng)
        for read in (validate_adapter, read_adapter):
            start = time.process_time()  # a busy machine is not the file's fault
            try:
                refused += bool(read(target)) if read is validate_adapter else 0
            except Sa3LoraError:
                pass
            except BaseException as error:  # noqa: BLE001, any other is what is looked for
                odd.append(f"{number} {source.name} {read.__name__}: {error!r}"[:300])
            slowest = max(slowest, time.process_time() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    grown_mb = (peak - before) / 1024
    return {
        "count": count,
        "refused": refused,
        "slowest_s": slowest,
        "grown_mb": grown_mb,
        "odd": odd,
    }


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]), count=int(sys.argv[2]), seed=int(sys.argv[3]))))
