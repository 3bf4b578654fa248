from __future__ import annotations

import pytest
from torch._inductor import config, cpp_builder

from sa3lora.errors import ModelError
from sa3lora.models.compiled import require_compiler


def test_a_missing_compiler_is_told_with_what_to_do() -> None:
    cpp_builder.cpp_compiler_search.cache_clear()
    missing = config.patch({"cpp.cxx": "no-such-compiler"})
    with missing, pytest.raises(ModelError, match=r"found none. Install g\+\+"):
        require_compiler("cpu")
    require_compiler("cuda")
