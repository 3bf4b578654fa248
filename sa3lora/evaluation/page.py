"""The readable page of an evaluation: one HTML file beside its audio, nothing fetched."""

from __future__ import annotations

from html import escape
from pathlib import PurePosixPath
from urllib.parse import quote

from sa3lora.evaluation.bootstrap import Estimate
from sa3lora.evaluation.plots import extrapolation_plot, interval_plot, pair_plot
from sa3lora.evaluation.result import ClipPair, EvaluationResult
from sa3lora.evaluation.scores import Score

PICTURED_CLIPS = 8  # of both systems; a picture of each of hundreds would be slow to make

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 66rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .35rem .6rem; border-bottom: 1px solid #8884; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.context, p.context { font-size: .8rem; opacity: .75; }
audio { width: 15rem; height: 2rem; }
img { width: 100%; max-width: 24rem; }
.base { color: #6b7280; } .adapter { color: #c2410c; }
"""


def render_page(result: EvaluationResult) -> str:
    """Give the page as text; everything that comes from files or users is escaped."""
    title = "Evaluation of " + " + ".join(_adapter(use.path) for use in result.adapters)
    sections = [
        f"<h1>{escape(title)}</h1>",
        _summary(result),
        _scores(result),
        _plots(result),
        _clips(result.clips),
        _notes(result),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body>\n{chr(10).join(sections)}\n</body></html>\n"
    )


def _adapter(path: str) -> str:
    return path.replace("\\", "/").rsplit("/", 1)[-1]


def _summary(result: EvaluationResult) -> str:
    made = result.settings
    steps = made.num_inference_steps or "default"
    guidance = "default" if made.guidance_scale is None else f"{made.guidance_scale:g}"
    used = ", ".join(
        f"{use.path} at strength {use.strength:g} ({use.content_hash[:12]})"
        for use in result.adapters
    )
    facts = (
        f"Model {result.model}; {used}. {made.num_clips} clips of {made.duration_s:g} s a system, "
        f"the same prompts and seeds (from {made.seed}) for both; steps {steps}, guidance "
        f"{guidance}."
    )
    items = "".join(f"<li>{escape(verdict)}</li>" for verdict in result.verdicts)
    return f"<p>{escape(facts)}</p>\n<h2>What the scores show</h2>\n<ul>{items}</ul>"


def _scores(result: EvaluationResult) -> str:
    head = (
        "<tr><th>Score</th><th>Base</th><th>Adapter</th><th>Difference</th>"
        "<th>95 % interval</th><th>Measured with</th></tr>"
    )
    rows = "".join(_score_row(score) for score in result.scores)
    return f"<h2>Scores</h2>\n<table>{head}{rows}</table>"


def _score_row(score: Score) -> str:
    mark = {"lower": " (lower is better)", "higher": " (higher is better)", "neither": ""}
    cells = [f"<td>{escape(score.title + mark[score.better])}</td>"]
    cells += [f'<td class="number">{_estimate(side)}</td>' for side in (score.base, score.adapter)]
    gap = score.difference
    cells.append(f'<td class="number">{"&ndash;" if gap is None else f"{gap.value:+.4g}"}</td>')
    cells.append(f'<td class="number">{_interval(gap, sign="+")}</td>')
    cells.append(f'<td class="context">{escape(str(score.context))}</td>')
    return f"<tr>{''.join(cells)}</tr>"


def _estimate(estimate: Estimate | None) -> str:
    if estimate is None:
        return "&ndash;"
    if estimate.low is None:
        return f"{estimate.value:.4g}"
    return f"{estimate.value:.4g}<br><small>{_interval(estimate)}</small>"


def _interval(estimate: Estimate | None, *, sign: str = "") -> str:
    if estimate is None or estimate.low is None or estimate.high is None:
        return "none"
    return f"{estimate.low:{sign}.4g} to {estimate.high:{sign}.4g}"


def _plots(result: EvaluationResult) -> str:
    parts = ["<h2>Differences, adapter minus base</h2>"]
    for score in result.scores:
        if score.difference is not None and score.difference.low is not None:
            plot = interval_plot([(score.title, score.difference)])
            parts.append(f"<figure><figcaption>{escape(score.title)}</figcaption>{plot}</figure>")
    if result.clips:
        pairs = [(clip.prompt, clip.base_clap, clip.adapter_clap) for clip in result.clips]
        parts.append(
            '<h2>CLAP score of each clip</h2><p><span class="base">base</span>, '
            f'<span class="adapter">adapter</span></p>{pair_plot(pairs)}'
        )
    if result.extrapolations:
        fits = ", ".join(
            f"{name}: {line.value:.4g} at infinite n (R² {line.r_squared:.2f})"
            for name, line in result.extrapolations.items()
        )
        parts.append(
            f"<h2>FAD against sample size</h2><p>{escape(fits)}</p>"
            f"{extrapolation_plot(result.extrapolations)}"
        )
    return "\n".join(parts)


def _clips(clips: tuple[ClipPair, ...]) -> str:
    head = "<tr><th>Prompt</th><th>Seed</th><th>Base</th><th>Adapter</th></tr>"
    rows = "".join(
        f'<tr><td>{escape(clip.prompt)}</td><td class="number">{clip.seed}</td>'
        f"<td>{_player(clip.base, clip.base_clap, pictured=number < PICTURED_CLIPS)}</td>"
        f"<td>{_player(clip.adapter, clip.adapter_clap, pictured=number < PICTURED_CLIPS)}</td>"
        "</tr>"
        for number, clip in enumerate(clips)
    )
    return f"<h2>Clips</h2>\n<table>{head}{rows}</table>"


def picture_path(path: str) -> str:
    """Name the spectrogram beside a clip."""
    return str(PurePosixPath(path).with_suffix(".png"))


def _player(path: str, clap: float, *, pictured: bool) -> str:
    picture = escape(quote(picture_path(path)))
    return (
        f'<audio controls preload="none" src="{escape(quote(path))}"></audio><br>'
        f"<small>CLAP {clap:.3f}</small>"
        + (f'<br><img loading="lazy" alt="spectrogram" src="{picture}">' if pictured else "")
    )


def _notes(result: EvaluationResult) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in result.notes)
    return f"<h2>Notes</h2>\n<ul>{items}</ul>"
