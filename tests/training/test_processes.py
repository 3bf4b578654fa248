from __future__ import annotations

import pytest

from sa3lora.errors import RunError
from sa3lora.training.processes import accelerated


@pytest.mark.parametrize("variable", ["FSDP", "DEEPSPEED"])
def test_a_launch_that_would_spread_the_model_is_refused(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{variable}", "true")
    with pytest.raises(RunError, match="each holds the whole frozen base"), accelerated("cpu"):
        pass
