"""Run folders: writing them, listing them, comparing two of them."""

from __future__ import annotations

from sa3lora.runs.comparison import Difference, compare_runs
from sa3lora.runs.folder import RunFolder, sha256_file, write_bytes_atomic, write_json_atomic
from sa3lora.runs.summary import RunSummary, list_runs, read_run

__all__ = [
    "Difference",
    "RunFolder",
    "RunSummary",
    "compare_runs",
    "list_runs",
    "read_run",
    "sha256_file",
    "write_bytes_atomic",
    "write_json_atomic",
]
