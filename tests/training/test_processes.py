from __future__ import annotations

import pytest

from sa3lora.errors import RunError
from sa3lora.training.processes import accelerated


@pytest.mark.parametrize("variable", ["DEEPSPEED", "MEGATRON_LM"])
def test_a_launch_of_another_engine_is_refused(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{variable}", "true")
    with pytest.raises(RunError, match="does not train here"), accelerated("cpu"):
        pass
