"""The divergence and its gradients, against autograd over whole logits."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from partitioning.distil import divergence as module
from partitioning.distil.divergence import Target, divergence
from partitioning.distil.settings import Divergence


@pytest.mark.parametrize("kind", ["forward", "reverse"])
def test_gradients_are_those_of_autograd(kind: Divergence, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", 7)
    torch.manual_seed(0)
    hidden, head = torch.randn(19, 8, requires_grad=True), torch.randn(31, 8, requires_grad=True)
    target, heat = Target(torch.randn(19, 12), torch.randn(31, 12)), 1.7
    own = F.log_softmax(hidden @ head.T / heat, dim=-1)
    theirs = F.log_softmax(target.hidden @ target.head.T / heat, dim=-1)
    pair = (own, theirs) if kind == "forward" else (theirs, own)
    expected = F.kl_div(*pair, log_target=True, reduction="batchmean") * heat**2
    wanted = torch.autograd.grad(3 * expected, (hidden, head))
    loss = divergence(hidden, head, target, kind, heat)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(3 * loss, (hidden, head)), wanted)
