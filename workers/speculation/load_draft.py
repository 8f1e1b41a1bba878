"""Loads what guesses on rank 0."""

from __future__ import annotations

import torch

from partitioning.checkpoint import open_checkpoint
from partitioning.draft import draft_plan, first_layers
from partitioning.plan import Plan
from workers.collectives import SoloGroup
from workers.model.stage import Stage
from workers.request import EngineConfig
from workers.runner import make_stage
from workers.speculation.draft_model import DraftStage


def load_draft(
    plan: Plan, config: EngineConfig, own: Stage, device: torch.device, all_native: bool
) -> tuple[DraftStage | None, int]:
    """The draft model that `config` asks for, None where it asks for none, and the bytes read for it. `own` is rank 0's
    stage: an early exit leaves it where it has all layers, else the first layers are read once more."""
    if config.speculation not in ("draft", "early-exit"):
        return None, 0
    layers = config.draft_layers if config.speculation == "early-exit" else None
    if layers is not None and len(plan.ranks) == 1:
        return DraftStage(own, layers, plan.model.vocab_size, device), 0
    path = config.draft_model if layers is None else plan.model_path
    with open_checkpoint(path) as checkpoint:
        model = checkpoint.spec if layers is None else first_layers(checkpoint.spec, layers)
        drafting = draft_plan(plan, model, path)
        stage = make_stage(drafting, 0, config, checkpoint, SoloGroup(), device, all_native, beside=own)
        return DraftStage(stage, None, model.vocab_size, device), checkpoint.bytes_read
