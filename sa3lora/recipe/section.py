"""Number types and the base class that every section of a recipe shares."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def no_bool(value: object) -> object:
    """Refuse a boolean where a number is due."""
    # yes, on and true are numbers to pydantic, and a rank of True would be 1
    if isinstance(value, bool):
        raise ValueError(f"must be a number, got {value!r}")
    return value


def auto_or_bool(value: object) -> object:
    """Refuse what is neither a boolean nor `auto`, such as the 1 that YAML may hold."""
    if value != "auto" and not isinstance(value, bool):
        raise ValueError(f"must be auto, true or false, got {value!r}")
    return value


Share = Annotated[float, Field(ge=0.0, le=1.0), BeforeValidator(no_bool)]
Weight = Annotated[float, Field(ge=0.0, allow_inf_nan=False), BeforeValidator(no_bool)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False), BeforeValidator(no_bool)]
Count = Annotated[int, Field(ge=1), BeforeValidator(no_bool)]
Steps = Annotated[int, Field(ge=0), BeforeValidator(no_bool)]


class Section(BaseModel):
    """A closed, frozen group of keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)
