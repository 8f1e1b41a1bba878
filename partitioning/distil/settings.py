"""What a distillation should do."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Divergence = Literal["forward", "reverse"]


class DistilError(ValueError):
    """A distillation that cannot be made. The message names the cause and the remedy."""


class Interrupted(Exception):
    """A training that was stopped after a whole step, and saved."""


class Settings(BaseModel):
    """How a student is trained, for `steps` optimiser steps or for `minutes`.

    A step is over `batch` times `accumulate` windows of `window` tokens; predictions are compared at `positions` of
    them, drawn anew every time. `temperature` divides both models' logits. The learning rate rises over the first
    `warmup` of the training and falls to zero along a cosine.
    """

    model_config = ConfigDict(frozen=True)

    divergence: Divergence = "forward"
    temperature: Annotated[float, Field(gt=0)] = 1.0
    steps: Annotated[int, Field(ge=1)] | None = None
    minutes: Annotated[float, Field(gt=0)] | None = None
    window: Annotated[int, Field(ge=8)] = 512
    batch: Annotated[int, Field(ge=1)] = 8
    accumulate: Annotated[int, Field(ge=1)] = 1
    positions: Annotated[float, Field(gt=0, le=1)] = 0.5
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.03
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    clip: Annotated[float, Field(gt=0)] = 1.0
    seed: Annotated[int, Field(ge=0)] = 0
    dtype: Literal["bfloat16", "float32"] = "float32"
    device: str = "cpu"

    @property
    def windows(self) -> int:
        """Of a step."""
        return self.batch * self.accumulate
