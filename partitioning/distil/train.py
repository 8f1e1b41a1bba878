"""The training itself: steps of AdamW on what the teacher predicts, until the budget is used."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from partitioning.distil.decoder import Decoder
from partitioning.distil.divergence import Target, divergence
from partitioning.distil.saved import Folder, optimiser_state, optimiser_tensors
from partitioning.distil.settings import Interrupted, Settings
from partitioning.distil.student import Student
from partitioning.distil.teacher import Teacher
from partitioning.distil.windows import Windows
from partitioning.distil.workers import Workers

_SAVE_EVERY_S = 300.0


@dataclass(frozen=True)
class Step:
    """What one step did: `loss` before it, in nats, and how much of the budget is used after it, from 0 to 1."""

    number: int
    loss: float
    learning_rate: float
    used: float


class Training:
    """Of one student; `decoder` computes with its weights as they are. Goes on where `folder` says. Each of `workers`
    has one, with the same arguments, and a folder on the same disk."""

    def __init__(
        self,
        student: Student,
        teacher: Teacher,
        windows: Windows,
        settings: Settings,
        folder: Folder,
        workers: Workers,
    ) -> None:
        self._teacher, self._windows, self._settings, self._folder = teacher, windows, settings, folder
        self._workers = workers
        self.done, self._seconds = 0, 0.0
        self.log: list[dict[str, float]] = []
        # Measured before the first step; None until then.
        self.before: dict[str, float] | None = None
        kept: torch.dtype = getattr(torch, settings.dtype)
        weights = {
            name: tensor.to(settings.device, kept if name in student.frozen else torch.float32)
            for name, tensor in student.tensors.items()
        }
        learning = [name for name in weights if name not in student.frozen]
        matrices = [name for name in learning if weights[name].dim() == 2]
        vectors = [name for name in learning if weights[name].dim() == 1]
        self._names = [*matrices, *vectors]
        groups = [
            {"params": [weights[name].requires_grad_() for name in names], "weight_decay": decay}
            for names, decay in ((matrices, settings.weight_decay), (vectors, 0.0))
        ]
        self._optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)
        self.decoder = Decoder(student.spec, weights, settings.dtype, settings.device)
        if (saved := folder.load()) is not None:
            self._go_on(*saved)

    def run(self, on_step: Callable[[Step], None], stop: Callable[[], bool]) -> None:
        """Until the budget is used. Raises Interrupted, with everything saved, when `stop` says so after a step."""
        last_save = time.monotonic()
        while self._used() < 1:
            began = time.monotonic()
            rate = self._rate()
            figures = torch.tensor([self._step(rate), time.monotonic() - began], device=self._settings.device)
            self._workers.add_up([figures])
            loss, seconds = figures.tolist()
            self.done += 1
            self._seconds += seconds / self._workers.size
            self.log.append(
                {"step": self.done, "loss": loss, "learning_rate": rate, "seconds": round(self._seconds, 2)}
            )
            on_step(Step(self.done, loss, rate, min(self._used(), 1.0)))
            if stop():
                self.save()
                raise Interrupted(f"stopped after step {self.done}")
            if time.monotonic() - last_save > _SAVE_EVERY_S:
                self.save()
                last_save = time.monotonic()
        self.save()

    def trained(self) -> dict[str, Tensor]:
        """The weights that learn, by name."""
        return {name: self.decoder.tensors[name].detach() for name in self._names}

    def save(self) -> None:
        if self._workers.rank > 0:
            return
        tensors = self.trained() | optimiser_tensors(self._names, self._optimiser.state_dict())
        progress = {"step": self.done, "seconds": self._seconds, "before": self.before, "log": self.log}
        self._folder.save(tensors, progress)

    def _step(self, rate: float) -> float:
        """Returns this worker's part of the loss."""
        settings, total = self._settings, 0.0
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        self._optimiser.zero_grad()
        for number, chosen in self._workers.own(self._windows.step(self.done)):
            target = self._teacher.target(chosen)
            positions = self._windows.positions(self.done, number).to(settings.device)
            target = Target(target.hidden[positions], target.head)
            hidden = self.decoder.hidden(self._windows.tokens[chosen]).flatten(0, 1)[positions]
            loss = divergence(hidden, self.decoder.head, target, settings.divergence, settings.temperature)
            (loss / settings.accumulate).backward()  # type: ignore[no-untyped-call]
            total += loss.item() / settings.accumulate
        learning = [self.decoder.tensors[name] for name in self._names]
        self._workers.add_up(tensor.grad for tensor in learning if tensor.grad is not None)
        torch.nn.utils.clip_grad_norm_(learning, settings.clip)
        self._optimiser.step()
        return total

    def _used(self) -> float:
        """The part of the budget: of the steps, or of the minutes that steps took."""
        if self._settings.steps is not None:
            return self.done / self._settings.steps
        assert self._settings.minutes is not None
        return self._seconds / (60 * self._settings.minutes)

    def _rate(self) -> float:
        settings, used = self._settings, self._used()
        if used < settings.warmup:
            # The first step of a training with a budget in minutes is at no time, and should learn something.
            return settings.learning_rate * max(used / settings.warmup, 0.01)
        left = (used - settings.warmup) / (1 - settings.warmup)
        return settings.learning_rate * (1 + math.cos(math.pi * left)) / 2

    @torch.no_grad()
    def _go_on(self, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
        self.done, self._seconds = progress["step"], progress["seconds"]
        self.before, self.log = progress["before"], progress["log"]
        for name in self._names:
            self.decoder.tensors[name].copy_(tensors[name])
        state = self._optimiser.state_dict()
        self._optimiser.load_state_dict({**state, "state": optimiser_state(self._names, tensors)})
