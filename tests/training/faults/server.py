"""Runs training in forked children: the imports are paid once, and children may be killed.

One request a line on stdin, one answer a line on stdout, both JSON. A request names a run folder, a
recipe, how many processes train and what shall go wrong in which of them.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

import sa3lora.training.trainer
from sa3lora.errors import Sa3LoraError
from sa3lora.models.denoiser import Denoiser
from sa3lora.models.source import resolve_model
from sa3lora.recipe import load_recipe
from sa3lora.runs import RunFolder
from sa3lora.training.events import TrainEvent
from sa3lora.training.processes import accelerated
from sa3lora.training.session import load_denoiser, set_up
from sa3lora.training.sharding import share_of_base

# Audit events of files that are about to be opened, renamed or removed.
_OPERATIONS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"}


def _watch_operations(folder: str, *, fault: dict[str, Any], report: dict[str, Any]) -> None:
    """Count what happens to files of the run, and die before operation number `at`."""
    report["operations"] = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in _OPERATIONS and isinstance(args[0], str) and args[0].startswith(folder):
            report["operations"] += 1
            if report["operations"] == fault.get("at"):
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _limit_files(size: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def _train(request: dict[str, Any], rank: int) -> dict[str, Any]:
    """Train in this process and tell what came of it."""
    report: dict[str, Any] = {"losses": {}, "notes": [], "saved": [], "error": None}
    fault = request.get("fault") or {}
    mine = fault if fault.get("rank", 0) == rank else {}
    kind = mine.get("kind")
    if kind == "file size":
        _limit_files(mine["bytes"])
    _watch_operations(request["run"], fault=mine if kind == "operation" else {}, report=report)

    def told(event: TrainEvent) -> None:
        if event.kind == "step":
            report["losses"][event.step] = event.loss
        if event.kind == "checkpoint":
            report["saved"].append(event.step)
        if event.kind == "note":
            report["notes"].append(event.text)
        if kind == "shard" and event.kind == "step" and event.step == mine["step"]:
            os.truncate(mine["path"], os.path.getsize(mine["path"]) // 2)

    recipe = load_recipe(request["recipe"], request.get("overrides", []))
    try:
        sa3lora.training.trainer.train(
            recipe,
            run=RunFolder(request["run"]),
            source=resolve_model(str(recipe.model)),
            resume=request.get("resume", False),
            allow_change=request.get("allow_change", []),
            device="cpu",
            progress=told,
        )
    except (Sa3LoraError, OSError) as error:
        report["error"] = f"{type(error).__name__}: {error}"
    return report


def _load(request: dict[str, Any]) -> dict[str, Any]:
    """Load what a step needs and tell how many numbers of the base this process holds."""
    recipe = load_recipe(request["recipe"], request.get("overrides", []))
    with accelerated("cpu") as accelerator:
        source = resolve_model(str(recipe.model))
        setup = set_up(recipe, source=source, accelerator=accelerator)
        try:
            denoiser = load_denoiser(setup)
        except Sa3LoraError as error:
            return {"error": f"{type(error).__name__}: {error}"}
        base = [p for name, p in denoiser.named_parameters() if ".lora_" not in name]
        spread = [p for p in base if isinstance(p, DTensor)]
        assert setup.sharding is not None
        kept = share_of_base(Denoiser(source.config), setup.sharding).kept
    return {
        "error": None,
        "base": sum(p.numel() for p in base),
        "held": sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in base),
        "whole": sum(p.numel() for p in base) - sum(p.numel() for p in spread),
        "expected": kept,
    }


def _child(request: dict[str, Any], rank: int, port: int, report: Path) -> None:
    world = request.get("processes", 1)
    if world > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world),
            "LOCAL_WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "ACCELERATE_USE_CPU": "true",
            **request.get("environment", {}),
        }
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    log = os.open(f"{report}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 2)
    status = 70
    try:
        found = _load(request) if request.get("load") else _train(request, rank)
        report.write_text(json.dumps(found), encoding="utf-8")
        status = 1 if found["error"] else 0
    finally:
        os._exit(status)  # nothing of the server's may run in a child


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _serve(request: dict[str, Any], scratch: Path) -> dict[str, Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = range(request.get("processes", 1))
    reports = [scratch / f"report-{rank}.json" for rank in ranks]
    children = []
    for rank in ranks:
        reports[rank].unlink(missing_ok=True)
        pid = os.fork()
        if pid == 0:
            _child(request, rank, port, reports[rank])
        children.append(pid)
    fault = request.get("fault") or {}
    codes: dict[int, int] = {}
    cpu = dict.fromkeys(children, 0.0)
    doomed = children[fault.get("rank", 0)] if fault.get("kind") == "time" else None
    deadline = time.monotonic() + request.get("timeout", 300)
    while len(codes) < len(children):
        for pid in set(children) - codes.keys():
            cpu[pid] = _cpu_seconds(pid)
            late = pid == doomed and cpu[pid] >= fault["after"]
            # Who waits for a partner that is gone is ended as a launcher would end it.
            orphaned = any(code != 0 for code in codes.values()) and not request.get("unattended")
            if late or orphaned or time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
            done, code = os.waitpid(pid, os.WNOHANG)
            if done:
                codes[pid] = os.waitstatus_to_exitcode(code)
        time.sleep(0.003)
    found = [json.loads(r.read_text("utf-8")) if r.exists() else None for r in reports]
    logs = [Path(f"{r}.log").read_text("utf-8", "replace")[-3000:] for r in reports]
    return {
        "codes": [codes[pid] for pid in children],
        "cpu": [cpu[pid] for pid in children],
        "reports": found,
        "logs": logs,
    }


def main() -> None:
    """Serve requests until stdin ends."""
    torch.set_num_threads(1)
    scratch = Path(sys.argv[1])
    for line in sys.stdin:
        sys.stdout.write(json.dumps(_serve(json.loads(line), scratch)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
