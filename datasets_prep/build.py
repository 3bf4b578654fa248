"""From a folder of audio to a latents dataset, resumable at any point.

Order of work: check every file, refuse before anything is written, compare with what an earlier
prep left, encode what is missing, declare the folder a dataset. A folder whose prep did not
finish has no manifest and cannot be opened by mistake.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from datasets_prep import store
from datasets_prep.captions import check_template
from datasets_prep.encode import encode_clips, encode_silence
from datasets_prep.options import PrepOptions, PrepReport, segment_rule
from datasets_prep.plan import Plan, PlannedClip, PlanOptions, make_plan
from datasets_prep.ranks import Ranks
from datasets_prep.scan import SourceFacts, SourceFile, Unusable, check_source, find_sources
from datasets_prep.split import check_fractions
from sa3lora.errors import DatasetError, Sa3LoraError
from sa3lora.latents.manifest import (
    collect_rows,
    manifest_is_current,
    remove_manifest,
    summarise,
    write_manifest,
    write_silence,
)
from sa3lora.latents.schema import FORMAT_VERSION, DatasetMeta
from sa3lora.models.source import ModelSource
from sa3lora.runs import sha256_file

__all__ = ["PrepOptions", "PrepReport", "prep"]

_log = logging.getLogger(__name__)
_CHECK_THREADS = 2
_SPARE_BYTES = 4 << 20
# Called with the stage (`check` or `encode`), what is done, the whole, and the file.
Progress = Callable[[str, float, float, str], None]


def prep(
    audio_dir: str | Path,
    out: str | Path,
    *,
    source: ModelSource,
    options: PrepOptions | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    progress: Progress | None = None,
) -> PrepReport:
    """Make a latents dataset from a folder of audio, or bring one up to date.

    Run again after an interruption it goes on; run again on the same folder it encodes nothing.
    Files that were added, changed or removed since are encoded or dropped, and logged.

    Args:
        audio_dir: The folder.
        out: The dataset folder, made if missing.
        source: The model whose autoencoder encodes.
        options: Captions, segments, splits, broken files.
        device: Where to encode.
        dtype: Precision of the autoencoder; latents are stored as float16 anyhow.
        progress: Called as work goes on.

    Returns:
        What was done.

    Raises:
        DatasetError: Naming every file that cannot be used or has no caption, before anything is
            written; or if the folder was made in another way, or the disk is full.
        UsageError: If lengths or fractions cannot work.
    """
    chosen = options or PrepOptions()
    work = _Prep(Path(audio_dir), Path(out), source, chosen, Ranks.current(), progress)
    return work.run(device=device, dtype=dtype)


class _Prep:
    """One run of `prep`, in one process."""

    def __init__(
        self,
        audio_dir: Path,
        out: Path,
        source: ModelSource,
        options: PrepOptions,
        ranks: Ranks,
        progress: Progress | None,
    ) -> None:
        self.audio_dir = audio_dir
        self.out = out
        self.source = source
        self.options = options
        self.ranks = ranks
        self.progress = progress or (lambda stage, done, total, name: None)
        self.rule = segment_rule(source, options)

    def run(self, *, device: str, dtype: torch.dtype) -> PrepReport:
        check_fractions(self.options.validation, self.options.test)
        if self.options.caption_template is not None:
            check_template(self.options.caption_template)
        is_new = not self.out.exists()
        identity = self.identity()
        stored = store.read_options(self.out)
        if stored is not None:
            store.check_options(self.out, stored=stored, wanted=identity)
        plan, facts = self.plan()
        try:
            missing = self.ranks.first(lambda: self.settle(plan, facts, identity))
            self.encode(plan, missing, device=device, dtype=dtype)
            meta = self.ranks.first(lambda: self.finish(plan, identity))
        except BaseException:  # Ctrl-C too: a folder this run made must not stay half-written
            if is_new and self.ranks.is_first:
                store.abandon(self.out)
            raise
        encoded = len(missing)
        return PrepReport(
            self.out, meta, encoded, len(plan.clips) - encoded, plan.num_files,
            plan.skipped, plan.silent,
        )  # fmt: skip

    def identity(self) -> dict[str, Any]:
        """What all clips of one dataset must have in common."""
        same = self.source.config.same
        return {
            "format_version": FORMAT_VERSION,
            "model": self.source.name,
            "ae_hash": self.source.ae_hash,
            "sample_rate": same.sample_rate,
            "ratio": same.downsampling_ratio,
            "channels": same.latent_dim,
            "segment_s": self.rule.segment_s,
            "min_s": self.rule.min_s,
            "max_s": self.rule.max_s,
        }

    def plan(self) -> tuple[Plan, list[SourceFacts]]:
        """Check every file, each process its share, and decide the clips."""
        files, foreign = find_sources(self.audio_dir, exclude=self.out)
        mine = self.ranks.share(files, cost=lambda file: file.path.stat().st_size)
        known = store.read_checks(self.out)
        parts = self.ranks.gather(self.check(mine, known))
        checked = [item for part in parts for item in part]
        plan = make_plan(
            checked,
            root=self.audio_dir,
            rule=self.rule,
            options=PlanOptions(
                caption_template=self.options.caption_template,
                validation=self.options.validation,
                test=self.options.test,
                skip_broken=self.options.skip_broken,
            ),
            foreign=foreign,
        )
        return plan, [facts for _, facts in checked if isinstance(facts, SourceFacts)]

    def check(
        self, files: Sequence[SourceFile], known: Mapping[str, SourceFacts]
    ) -> list[tuple[SourceFile, SourceFacts | Unusable]]:
        def look(file: SourceFile) -> SourceFacts | Unusable:
            try:
                found = known.get(sha256_file(file.path))
            except OSError:
                found = None  # check_source says why
            return found or check_source(file, rule=self.rule)

        checked: list[tuple[SourceFile, SourceFacts | Unusable]] = []
        with ThreadPoolExecutor(_CHECK_THREADS) as pool:
            for file, result in zip(files, pool.map(look, files), strict=True):
                checked.append((file, result))
                self.progress("check", len(checked), len(files), file.relative)
        return checked

    def settle(
        self, plan: Plan, facts: Sequence[SourceFacts], identity: Mapping[str, Any]
    ) -> set[str]:
        """Bring the folder in line with the plan as far as that needs no encoding."""
        for names in plan.duplicates:
            _log.info("the same audio, kept on one side of the split: %s", ", ".join(names))
        channels = int(identity["channels"])
        present = store.present_clips(self.out)
        self.require_space(
            [clip for clip in plan.clips if clip.row.clip_id not in present], channels=channels
        )
        store.begin(self.out, options=identity)
        store.write_checks(self.out, facts)
        wanted = {clip.row.clip_id: clip.row for clip in plan.clips}
        missing = set(wanted) - store.reconcile(self.out, wanted=wanted, channels=channels)
        if missing or not store.has_silence(self.out, channels=channels):
            remove_manifest(self.out)
        return missing

    def require_space(self, clips: Sequence[PlannedClip], *, channels: int) -> None:
        needed = sum(clip.row.num_frames for clip in clips) * channels * 2 + _SPARE_BYTES
        place = next(p for p in (self.out.absolute(), *self.out.absolute().parents) if p.exists())
        free = shutil.disk_usage(place).free
        if needed > free:
            raise DatasetError(
                f"the dataset needs {needed / 1e6:.0f} MB, {place} has {free / 1e6:.0f} MB free. "
                "Make room, or give another -o."
            )

    def encode(self, plan: Plan, missing: set[str], *, device: str, dtype: torch.dtype) -> None:
        """Encode this process's share of what is missing, and silence in the first process."""
        todo = [clip for clip in plan.clips if clip.row.clip_id in missing]
        by_file: dict[Path, list[PlannedClip]] = {}
        for clip in todo:
            by_file.setdefault(clip.path, []).append(clip)
        groups = self.ranks.share(
            list(by_file.values()), cost=lambda group: sum(c.row.duration_s for c in group)
        )
        clips = [clip for group in groups for clip in group]
        channels = self.source.config.same.latent_dim
        silence = self.ranks.is_first and not store.has_silence(self.out, channels=channels)
        error: Sa3LoraError | None = None
        try:
            if clips or silence:
                autoencoder = self.source.load_autoencoder(device=device, dtype=dtype)
                if silence:
                    latent = encode_silence(autoencoder, device=device, max_s=self.rule.max_s)
                    write_silence(self.out, latent)
                encode_clips(
                    clips, root=self.out, rank=self.ranks.rank, autoencoder=autoencoder,
                    device=device, on_clip=self._encoded(clips),
                )  # fmt: skip
        except Sa3LoraError as failure:
            error = failure
        except OSError as failure:
            error = store.not_written(self.out, failure)
        self.ranks.check(error)

    def _encoded(self, clips: Sequence[PlannedClip]) -> Callable[[PlannedClip], None]:
        total = sum(clip.row.duration_s for clip in clips)
        done = 0.0

        def on_clip(clip: PlannedClip) -> None:
            nonlocal done
            done += clip.row.duration_s
            self.progress("encode", done, total, clip.row.source)

        return on_clip

    def finish(self, plan: Plan, identity: Mapping[str, Any]) -> DatasetMeta:
        """Declare the folder a dataset, unless it says all that already."""
        rows, fingerprint = collect_rows(self.out, channels=int(identity["channels"]))
        wanted = {clip.row.clip_id: clip.row for clip in plan.clips}
        assert {row.clip_id: row for row in rows} == wanted
        assert len(rows) == len(wanted)
        meta = DatasetMeta(
            model=str(identity["model"]),
            ae_hash=str(identity["ae_hash"]),
            sample_rate=int(identity["sample_rate"]),
            ratio=int(identity["ratio"]),
            channels=int(identity["channels"]),
            fingerprint=fingerprint,
            skipped=[asdict(item) for item in plan.skipped],
            silent=[asdict(item) for item in plan.silent],
            options={
                "segment_s": self.rule.segment_s,
                "min_s": self.rule.min_s,
                "validation": self.options.validation,
                "test": self.options.test,
                "caption_template": self.options.caption_template,
            },
            **summarise(rows),
        )
        if manifest_is_current(self.out, meta):
            return meta
        try:
            write_manifest(self.out, meta)
        except OSError as error:
            raise store.not_written(self.out, error) from error
        return meta
