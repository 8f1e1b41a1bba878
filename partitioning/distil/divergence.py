"""How far a student's predictions are from the teacher's, without the logits of more than a few tokens at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from partitioning.distil.settings import Divergence

# Positions whose logits exist at once. A head that is read for a few tokens costs more than it computes; logits of
# many leave the processor's caches between the passes over them.
_CHUNK = 256


@dataclass(frozen=True)
class Target:
    """The teacher's predictions: its last hidden states [positions, hidden] and its head [vocabulary, hidden]."""

    hidden: Tensor
    head: Tensor

    def logits(self, part: slice) -> Tensor:
        """float32 [positions, vocabulary]"""
        return F.linear(self.hidden[part].to(self.head.dtype), self.head).float()


def divergence(hidden: Tensor, head: Tensor, target: Target, kind: Divergence, temperature: float) -> Tensor:
    """The mean Kullback-Leibler divergence in nats at `temperature`, times its square, which keeps gradients as large
    as they are at 1 (Hinton et al., "Distilling the knowledge in a neural network", 2015).

    Forward is of the student from the teacher: it covers all that the teacher might say. Reverse is the other way
    round: it keeps to what the teacher finds likely (Gu et al., "MiniLLM", 2023). hidden [positions, hidden] and head
    [vocabulary, hidden] are the student's; both get gradients where they want them.
    """
    loss: Tensor = _Divergence.apply(hidden, head, target, kind, temperature)  # type: ignore[no-untyped-call]
    return loss


class _Divergence(torch.autograd.Function):
    """Computes the gradients beside the loss, so that no logits are kept or computed twice."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, target: Target, kind: Divergence, temperature: float) -> Tensor:
        own_head = head.to(target.head.dtype)
        own = hidden.to(own_head.dtype)
        grad_hidden = torch.empty_like(hidden)
        grad_head = torch.zeros_like(head) if ctx.needs_input_grad[1] else None
        total, count = hidden.new_zeros((), dtype=torch.float64), len(hidden)
        for start in range(0, count, _CHUNK):
            part = slice(start, min(start + _CHUNK, count))
            student = F.linear(own[part], own_head).float().div_(temperature).log_softmax(dim=-1)
            teacher = target.logits(part).div_(temperature).log_softmax(dim=-1)
            loss, slope = _forward(student, teacher) if kind == "forward" else _reverse(student, teacher)
            total += loss
            slope = slope.mul_(temperature / count).to(own_head.dtype)
            grad_hidden[part] = slope @ own_head
            if grad_head is not None:
                grad_head += slope.T @ own[part]
        ctx.save_for_backward(grad_hidden, grad_head)
        return (total * temperature**2 / count).float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        hidden, head = ctx.saved_tensors
        return hidden * grads[0], None if head is None else head * grads[0], None, None, None


def _forward(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """The sum over positions, and its derivative by the student's logits. Log-probabilities are [positions,
    vocabulary], and overwritten."""
    probability = teacher.exp()
    loss = torch.dot(probability.view(-1), teacher.sub_(student).view(-1))
    return loss, student.exp_().sub_(probability)


def _reverse(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    probability = student.exp()
    further = student.sub_(teacher)
    losses = torch.linalg.vecdot(probability, further)
    return losses.sum(), further.sub_(losses[:, None]).mul_(probability)
