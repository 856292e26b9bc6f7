"""What every body has in common: nothing but what is named."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class StrictRequest(BaseModel):
    """What comes in: no other fields, no value of another type."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class StrictAnswer(BaseModel):
    """What goes out: no other fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")
