"""What every body has in common: nothing but what is named.

A list in a request stops at its first fault (``fail_fast``): faults of millions of items would be
collected on the event loop, and one is told.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class StrictRequest(BaseModel):
    """What comes in: no other fields, no value of another type."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class StrictAnswer(BaseModel):
    """What goes out: no other fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")
