"""The page of a shared adapter: what the Hub shows, and what a stranger must know to use it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

import sa3lora
from sa3lora.adapters.files import AdapterFile
from sa3lora.adapters.header import PREFIX

_TAGS = ("text-to-audio", "stable-audio-3", "lora", "sa3lora")
_NOT_TOLD = "not told"


@dataclass(frozen=True)
class DataStatement:
    """What an adapter was trained on.

    Attributes:
        clips: Number of clips.
        sources: Number of files they come from, None if not known.
        minutes: Their length together.
        licences: Number of clips of each licence, None for an unknown one.
        attributions: Whom to name.
    """

    clips: int
    sources: int | None
    minutes: float
    licences: Mapping[str | None, int] = field(default_factory=dict)
    attributions: Sequence[str] = ()


@dataclass(frozen=True)
class ScoreRow:
    """One measure at one strength, with what it was measured under."""

    strength: float
    title: str
    base: str
    adapter: str
    verdict: str
    conditions: str


@dataclass(frozen=True)
class Card:
    """Everything that a page is made of; what is None or empty is said to be not known."""

    name: str
    file: str
    adapter: AdapterFile
    sha256: str
    base: str
    base_repo: str | None
    data: DataStatement | None = None
    scores: Sequence[ScoreRow] = ()
    strengths: str | None = None
    samples: Sequence[str] = ()
    choice: str | None = None

    def _told(self, key: str) -> str | None:
        return self.adapter.metadata.get(key) or None

    @property
    def trigger(self) -> str | None:
        """Words of a prompt that call the style."""
        return self._told(f"{PREFIX}trigger")

    @property
    def licence(self) -> str | None:
        """Licence of the adapter, which is what its training data asks for."""
        return self._told(f"{PREFIX}licence")

    def text(self) -> str:
        """Give the whole README.md."""
        parts = [
            self._front_matter(), f"# {self.name}", self._summary(), self._use(), self._training(),
            self._measured(), self._listen(), self._licences(), self._sums(),
        ]  # fmt: skip
        return "\n\n".join(part for part in parts if part) + "\n"

    def _front_matter(self) -> str:
        tags = [tag.strip() for tag in (self._told("modelspec.tags") or "").split(",")]
        content: dict[str, Any] = {
            "base_model": self.base_repo or self.base,
            "base_model_relation": "adapter",
            "license": "other",
            "license_name": "base-model-and-training-data",
            "license_link": self._licence_link(),
            "pipeline_tag": "text-to-audio",
            "tags": list(dict.fromkeys([*_TAGS, *(tag for tag in tags if tag)])),
        }
        if self.trigger:
            content["instance_prompt"] = self.trigger
        written = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1000)
        return f"---\n{written}---"

    def _licence_link(self) -> str:
        if self.base_repo is None:
            return "https://www.apache.org/licenses/LICENSE-2.0"
        return f"https://huggingface.co/{self.base_repo}"

    def _summary(self) -> str:
        config = self.adapter.config
        step = self._told(f"{PREFIX}step")
        rows = [
            ("base model", self.base),
            ("type", f"{config.type}, rank {config.r}, alpha {config.alpha:g}"),
            ("layers", str(len(self.adapter.sites))),
            ("steps", step or _NOT_TOLD),
            *([("why this step", self.choice)] if self.choice else []),
            ("trigger words", self.trigger or "none"),
            ("useful strength", self.strengths or "not measured"),
        ]
        return _table(("", ""), rows)

    def _use(self) -> str:
        prompt = self.trigger or "your prompt"
        return (
            "## Use\n\n```bash\n"
            f'sa3lora generate "{_quoted(prompt)}" --adapter {self.file}=1.0 -o out.wav\n```\n\n'
            "The file is in the single-file layout of the official Stable Audio 3 tools, which "
            "load it too. For PEFT and diffusers: `sa3lora convert`. Strength 0 is the base model, "
            "1 is as trained."
        )

    def _training(self) -> str:
        lines = ["## Training data", ""]
        if self.data is None:
            lines.append("Not told.")
        else:
            files = "" if self.data.sources is None else f" of {self.data.sources} files"
            lines.append(f"{self.data.clips} clips{files}, {self.data.minutes:.1f} minutes.")
            if self.data.licences:
                rows = [
                    (licence or "unknown", str(count))
                    for licence, count in sorted(
                        self.data.licences.items(),
                        key=lambda item: (item[0] is None, item[0] or ""),
                    )
                ]
                lines += ["", _table(("licence", "clips"), rows)]
            if self.data.attributions:
                lines += ["", "Attribution: " + "; ".join(self.data.attributions) + "."]
        fingerprint = self._told(f"{PREFIX}dataset")
        if fingerprint:
            lines += ["", f"Fingerprint of the dataset: `{fingerprint}`"]
        recipe = self._told(f"{PREFIX}recipe")
        if recipe:
            lines += ["", "## Recipe", "", "```yaml", recipe.strip().replace("```", "'''"), "```"]
        return "\n".join(lines)

    def _measured(self) -> str:
        if not self.scores:
            return "## Scores\n\nNot measured."
        rows = [
            (f"{row.strength:g}", row.title, row.base, row.adapter, row.verdict, row.conditions)
            for row in self.scores
        ]
        head = ("strength", "score", "base", "adapter", "what it shows", "measured with")
        return "## Scores\n\n" + _table(head, rows)

    def _listen(self) -> str:
        if not self.samples:
            return ""
        players = [
            f'{name.rsplit("/", 1)[-1]}:\n\n<audio controls src="{name}"></audio>'
            for name in self.samples
        ]
        return "## Listen\n\n" + "\n\n".join(players)

    def _licences(self) -> str:
        base = (
            f"The licence of {self.base} governs its use with this adapter: {self._licence_link()}."
            if self.base_repo
            else f"The base model {self.base} has the licence its owner gave it; tiny, which comes "
            "with sa3lora, is Apache-2.0."
        )
        own = self.licence or "none is told; ask the author"
        return f"## Licence\n\n{base} Of the adapter and its training data: {own}."

    def _sums(self) -> str:
        hashes = {
            "file": self.sha256,
            "content": self.adapter.content_hash,
            "base (DiT and conditioners)": self._told(f"{PREFIX}dit_hash") or _NOT_TOLD,
        }
        rows = [(key, f"`{value}`") for key, value in hashes.items()]
        return (
            f"## Checksums\n\n{_table(('SHA-256', ''), rows)}\n\n"
            "`sa3lora verify FOLDER` recomputes what `SHA256SUMS` lists. "
            f"Written by sa3lora {sa3lora.__version__}."
        )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")


def _quoted(text: str) -> str:
    return text.replace("\\", "").replace('"', "'").replace("`", "'").replace("\n", " ")
