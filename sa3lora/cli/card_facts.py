"""What a run and a dataset know about an adapter, for its card."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sa3lora.cli.output import status
from sa3lora.errors import AdapterError

if TYPE_CHECKING:
    from sa3lora.adapters.hub_card import DataStatement, ScoreRow

_MAX_SAMPLES = 6


@dataclass(frozen=True)
class Evaluation:
    """An `evaluation.json` about this adapter alone."""

    folder: Path
    strength: float
    content: dict[str, Any]

    @property
    def verdicts(self) -> list[str]:
        """What each score shows."""
        return [str(score["verdict"]) for score in self.content["scores"]]


def evaluations(run: Path | None, content_hash: str) -> list[Evaluation]:
    """Find the evaluations of a run that are about this very adapter, by strength.

    Raises:
        AdapterError: If one cannot be read.
    """
    found = []
    files = [] if run is None else sorted((run / "evaluation").rglob("evaluation.json"))
    for file in files:
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            used = content["adapters"]
            strengths = [float(one["strength"]) for one in used]
            hashes = [one["content_hash"] for one in used]
            evaluation = Evaluation(file.parent, strengths[0] if strengths else 0.0, content)
            _ = evaluation.verdicts
        except (ValueError, KeyError, TypeError) as error:
            raise AdapterError(f"{file} is no evaluation ({error!r}). Evaluate again.") from error
        if hashes == [content_hash]:
            found.append(evaluation)
        else:
            status(f"{file} is about another adapter or a stack, so it is left out")
    return sorted(found, key=lambda evaluation: evaluation.strength)


def score_rows(results: Sequence[Evaluation]) -> list[ScoreRow]:
    """Give every score of every strength with its conditions."""
    from sa3lora.adapters.hub_card import ScoreRow

    return [
        ScoreRow(
            strength=result.strength,
            title=score["title"],
            base=_estimate(score["base"]),
            adapter=_estimate(score["adapter"]),
            verdict=score["verdict"],
            conditions=_conditions(score["context"]),
        )
        for result in results
        for score in result.content["scores"]
    ]


def strength_range(results: Sequence[Evaluation]) -> str | None:
    """Say at which of the measured strengths something got better and nothing worse."""
    if not results:
        return None
    measured = sorted({result.strength for result in results})
    useful = sorted(
        {
            result.strength
            for result in results
            if any("the adapter is better" in verdict for verdict in result.verdicts)
            and not any("the adapter is worse" in verdict for verdict in result.verdicts)
        }
    )
    of = ", ".join(f"{strength:g}" for strength in measured)
    if not useful:
        return f"none of those measured ({of}) made a score better and none worse"
    span = f"{useful[0]:g}" if len(useful) == 1 else f"{useful[0]:g} to {useful[-1]:g}"
    return f"{span} (measured at {of})"


def statement(run: Path | None, data: Path | None) -> DataStatement | None:
    """Tell what was trained on, from the dataset, or as far as the run knows it."""
    from sa3lora.adapters.hub_card import DataStatement

    if data is not None:
        from sa3lora.latents.format import LatentsDataset

        rows = LatentsDataset.open(data, split="train").rows
        return DataStatement(
            clips=len(rows),
            sources=len({row.source for row in rows}),
            minutes=sum(row.duration_s for row in rows) / 60,
            licences=Counter(row.licence or None for row in rows),
            attributions=sorted({row.attribution for row in rows if row.attribution}),
        )
    if run is None:
        return None
    from sa3lora.runs import RunFolder

    known = RunFolder(run).manifest().get("dataset") or {}
    seconds = known.get("seconds") or {}
    if "clips" not in known:
        return None
    status("licences of the training data are not in the run: --data DATASET adds them")
    return DataStatement(int(known["clips"]), None, float(seconds.get("train", 0.0)) / 60)


def choice(run: Path | None) -> str | None:
    """Tell why the adapter is of its step and not of another, and whether the run overfitted."""
    if run is None:
        return None
    from sa3lora.runs import RunFolder

    manifest = RunFolder(run).manifest()
    reason = (manifest.get("adapter") or {}).get("reason")
    if not isinstance(reason, str) or not reason:
        return None
    since = manifest.get("overfits_since")
    return reason if since is None else f"{reason}; the run overfitted since step {since}"


def samples(run: Path | None, results: Sequence[Evaluation]) -> dict[str, Path]:
    """Choose sounds to show: pairs of an evaluation, else the adapter's previews and the base's."""
    if run is None:
        return {}
    for result in results:
        there = _clips(result)
        if there:
            return there
    found: dict[str, Path] = {}
    # 01-base.wav, 01-step-00000200.wav; anything else there is another model or a recording.
    for base in sorted((run / "previews").glob("[0-9][0-9]-base.wav")):
        number = base.name.partition("-")[0]
        found[f"samples/{number}-base.wav"] = base
        adapted = _preview_of_adapter(run, number)
        if adapted is not None:
            found[f"samples/{number}-adapter.wav"] = adapted
    return dict(list(found.items())[:_MAX_SAMPLES])


def _preview_of_adapter(run: Path, number: str) -> Path | None:
    """Find the preview of the step that was written, or the newest if the run does not say it."""
    from sa3lora.runs import RunFolder

    steps = sorted((run / "previews").glob(f"{number}-step-*.wav"))
    written = (RunFolder(run).manifest().get("adapter") or {}).get("step")
    if written is not None:
        name = f"{number}-step-{int(written):08d}.wav"
        steps = [path for path in steps if path.name == name]
    return steps[-1] if steps else None


def _clips(result: Evaluation) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for number, clip in enumerate(result.content.get("clips", ()), start=1):
        for side in ("base", "adapter"):
            file = (result.folder / str(clip[side])).resolve()
            # What lies elsewhere is nobody's sample.
            inside = file.is_relative_to(result.folder.resolve())
            if inside and file.suffix == ".wav" and file.is_file() and len(found) < _MAX_SAMPLES:
                found[f"samples/{number:02d}-{side}.wav"] = file
    return found


def _estimate(value: dict[str, Any] | None) -> str:
    if value is None:
        return "-"
    if value.get("low") is None:
        return f"{value['value']:.4g}"
    return f"{value['value']:.4g} ({value['low']:.4g} to {value['high']:.4g})"


def _conditions(context: dict[str, Any]) -> str:
    window = "" if context.get("window_s") is None else f", windows of {context['window_s']:g} s"
    reference = context.get("reference") or ""
    shown = f", reference {reference} {context.get('reference_hash', '')[:12]}" if reference else ""
    return f"{context['embedder']}{window}, n = {context['num_clips']}{shown}"
