"""AdamW takes PyTorch's steps and does not import its compiler."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import torch

from trainables.optimizer import AdamW


def train(
    kind: Callable[..., torch.optim.AdamW], *, resume_at: int | None = None
) -> list[torch.Tensor]:
    """A small network's weights after twenty steps, from a saved state on where asked."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    optimizer = kind(network.parameters(), lr=0.1, weight_decay=0.1)
    for step in range(20):
        if step == resume_at:
            state = optimizer.state_dict()
            optimizer = kind(network.parameters(), lr=1.0, weight_decay=0.1)
            optimizer.load_state_dict(state)
        optimizer.zero_grad(set_to_none=True)
        network(torch.randn(16, 4)).square().mean().backward()
        optimizer.step()
    return [parameter.detach() for parameter in network.parameters()]


def test_steps_are_pytorchs() -> None:
    for ours, theirs in zip(train(AdamW), train(torch.optim.AdamW), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_saved_state_continues_bit_for_bit() -> None:
    for resumed, uninterrupted in zip(train(AdamW, resume_at=7), train(AdamW), strict=True):
        assert torch.equal(resumed, uninterrupted)


def test_training_does_not_import_the_compiler() -> None:
    script = (
        "import sys; from tests.test_optimizer import AdamW, train; train(AdamW, resume_at=7);"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
