"""Damaged files end in one of our errors: no crash, no hang, no memory beyond their size."""

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).with_name("fuzz_corpus.py")


def test_a_thousand_damaged_files_end_in_an_error_quickly_and_in_little_memory(tmp_path):
    command = [sys.executable, str(PROGRAM), str(tmp_path), "1000", "0"]
    result = subprocess.run(command, capture_output=True, check=True, timeout=600)
    found = json.loads(result.stdout)
    assert found["odd"] == []
    assert found["refused"] > 800
    assert found["slowest_s"] < 1.0
    assert found["grown_mb"] < 200
