"""How well a student guesses what its teacher says, on text that it did not learn from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from partitioning.distil.decoder import Decoder
from partitioning.distil.teacher import Teacher
from partitioning.distil.windows import Windows

_CHUNK = 256


@dataclass(frozen=True)
class Reading:
    """Over the held-out text: `divergence` of the student from the teacher in nats a token; `agreement`, how often both
    find the same token likeliest (a greedy guess is then accepted); `acceptance`, how often speculative sampling at
    temperature 1 accepts a guess: what their probabilities share (Leviathan et al., 2023, section 3.1)."""

    divergence: float
    agreement: float
    acceptance: float


@torch.no_grad()
def measured(student: Decoder, teacher: Teacher, windows: Windows) -> Reading:
    """Of all positions of the held-out windows."""
    sums, count = torch.zeros(3, dtype=torch.float64), 0
    for window in windows.held_out:
        target = teacher.target([window])
        hidden = student.hidden(windows.tokens[window][None])[0]
        head = student.head.to(target.head.dtype)
        for start in range(0, len(hidden), _CHUNK):
            part = slice(start, start + _CHUNK)
            own = F.linear(hidden[part].to(head.dtype), head).float()
            sums += _compared(own, target.logits(part)).cpu()
        count += len(hidden)
    return Reading(*(sums / count).tolist())


def _compared(own: Tensor, theirs: Tensor) -> Tensor:
    """The sums over positions, of logits [positions, vocabulary]."""
    same = own.argmax(dim=-1) == theirs.argmax(dim=-1)
    p, q = theirs.log_softmax(dim=-1), own.log_softmax(dim=-1)
    shared = torch.minimum(p, q).exp().sum()
    return torch.stack([(p.exp() * (p - q)).sum(), same.sum(), shared]).double()
