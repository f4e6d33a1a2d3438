"""What both loops do around a step: seeding, learning rate, precision, gradients over ranks."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NotRequired, TypedDict

import torch
import torch.distributed
from torch import Tensor, nn

from seld.losses import distributed

Metrics = dict[str, float]
#: See :func:`network_precision`.
Precision = Literal["auto", "float32", "bf16"]


class BestState(TypedDict):
    """The network of the lowest validated SELD error so far."""

    step: int
    seld_error: float
    network: dict[str, Tensor]


class TrainState(TypedDict):
    """All that a run needs to continue bit for bit; plain tensors, loads with weights_only.

    ``probes`` are those of the networks at this step, where pretraining was probed; ``earlier`` are
    the embeddings that its next steps have as negatives.
    """

    step: int
    networks: dict[str, Tensor]
    optimizer: dict[str, Any]
    best: NotRequired[BestState]
    probes: NotRequired[Metrics]
    earlier: NotRequired[dict[str, Tensor]]


#: ``report(step, metrics, state)``; ``state`` is None where no checkpoint is due. It may raise to
#: stop the run.
Report = Callable[[int, Metrics, TrainState | None], None]


class NonFiniteLossError(RuntimeError):
    """A loss or gradient was not finite; no step was taken with it."""

    def __init__(self, step: int, what: str) -> None:
        super().__init__(step, what)  # unpickling calls it with these
        self.step = step
        self.what = what

    def __str__(self) -> str:
        return f"{self.what} is not finite at step {self.step}"


def seed_step(seed: int, step: int) -> torch.Generator:
    """Make all randomness of a step depend on (seed, step, rank) only.

    Seeds torch's global generators, which dropout draws from, and returns a CPU generator for
    everything drawn by name.
    """
    rank = torch.distributed.get_rank() if distributed() else 0
    mixed = ((seed * 1_000_003 + step) * 4099 + rank) % (2**62)
    # Not what is drawn by name once more: a CPU's generator looks at the lower 32 bits alone.
    different = mixed ^ 2**31
    # Not torch.manual_seed: until CUDA starts, on a CPU for ever, it keeps the seed for it together
    # with a stack trace, which is a twelfth of a small step.
    torch.default_generator.manual_seed(different)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(different)
    return torch.Generator().manual_seed(mixed)


def schedule(step: int, steps: int, warmup_steps: int) -> float:
    """Factor of the learning rate: linear warm-up, then a cosine that ends at zero."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(steps - warmup_steps, 1)
    return 0.5 * (1.0 + math.cos(math.pi * progress))


@contextlib.contextmanager
def network_precision(precision: Precision, device: torch.device | str) -> Iterator[None]:
    """Run the networks in this precision.

    ``auto`` is bfloat16 under autocast where the device has instructions for it, else float32.
    """
    kind = torch.device(device).type
    with torch.autocast(kind, dtype=torch.bfloat16, enabled=uses_bf16(precision, kind)):
        yield


def uses_bf16(precision: Precision, kind: str) -> bool:
    """Whether networks of this precision run in bfloat16 on devices of this kind."""
    return precision == "bf16" or (precision == "auto" and computes_bf16(kind))


@functools.cache
def computes_bf16(kind: str) -> bool:
    """Whether bfloat16 is faster than float32 on this machine's devices of this kind.

    A CPU without instructions for it (AMX, AVX-512 BF16) takes seven to nine times as long for a
    step in bfloat16 as in float32 (``benchmarks/steps.py``).
    """
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if kind != "cpu":
        return False
    instructions = torch.cpu.get_capabilities()
    return any(instructions.get(name, False) for name in ("amx_bf16", "avx512_bf16"))


def average_gradients(networks: nn.Module) -> None:
    """Mean of every gradient over all ranks, in place; nothing with one rank."""
    if not distributed():
        return
    gradients = [each.grad for each in networks.parameters() if each.grad is not None]
    # All at once: hundreds of small exchanges take as long as the step.
    joined = torch.cat([gradient.flatten() for gradient in gradients])
    torch.distributed.all_reduce(joined)
    joined /= torch.distributed.get_world_size()
    parts = joined.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def require_finite(step: int, loss: Tensor, gradient_norm: Tensor) -> None:
    """Check loss and gradient norm in one read, because each read makes a GPU wait.

    Raises:
        NonFiniteLossError: one is not finite.
    """
    loss = loss.detach()
    if not torch.isfinite(torch.stack([loss, gradient_norm])).all():
        raise NonFiniteLossError(step, "gradient" if torch.isfinite(loss) else "loss")


class RunningMeans:
    """Means of scalars over the steps since the last report, kept on the device until read."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._steps = 0

    def add(self, **figures: Tensor) -> None:
        """One step's scalars."""
        self._steps += 1
        for name, figure in figures.items():
            figure = figure.detach().double()
            self._sums[name] = self._sums[name] + figure if name in self._sums else figure

    def take(self) -> Metrics:
        """The means since the last time."""
        means = {name: (total / self._steps).item() for name, total in self._sums.items()}
        self._sums, self._steps = {}, 0
        return means


def of_first_rank(tensor: Tensor) -> Tensor:
    """``tensor`` overwritten with the first rank's, on every rank; as it is with one rank."""
    if distributed():
        torch.distributed.broadcast(tensor, src=0)
    return tensor


def train_state(
    step: int,
    networks: nn.Module,
    optimizer: torch.optim.Optimizer,
    best: BestState | None = None,
) -> TrainState:
    """A copy of everything on the CPU, so that training on does not change it."""
    state: TrainState = {
        "step": step,
        "networks": detached(networks.state_dict()),
        "optimizer": _copied(optimizer.state_dict()),
    }
    if best is not None:
        state["best"] = best
    return state


def detached(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_copied(item) for item in value]
    return value
