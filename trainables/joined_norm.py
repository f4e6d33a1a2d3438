"""Batch normalisation over the batch of all ranks, on any device.

Without it the negatives of a joined batch would be normalised by the statistics of different parts
of it, and ranks' running statistics would drift apart. On GPUs it is ``torch.nn.SyncBatchNorm``,
which knows no CPU.
"""

from __future__ import annotations

import torch
import torch.distributed
import torch.distributed.nn.functional as differentiable
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def join_batch_norms(module: nn.Module) -> None:
    """Replace every batch normalisation below ``module``; names and states stay the same."""
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            if child.weight.is_cuda:
                setattr(module, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))
                continue
            joined = JoinedBatchNorm(child.num_features, eps=child.eps, momentum=child.momentum)
            joined.load_state_dict(child.state_dict())
            setattr(module, name, joined.to(child.weight.device))
        else:
            join_batch_norms(child)


class JoinedBatchNorm(_BatchNorm):
    """Normalises (batch, channel, ...) by the mean and variance over all ranks' batches."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass  # any number of dimensions

    def forward(self, input: Tensor) -> Tensor:
        """The same shape and type; gradients flow through the statistics of all ranks."""
        if not self.training:
            return super().forward(input)
        values = input.float()
        axes = [0, *range(2, input.ndim)]
        rows = torch.full((1,), values.numel() / values.shape[1], device=values.device)
        sums = differentiable.all_reduce(
            torch.cat([values.sum(axes), values.square().sum(axes), rows])
        )
        mean, mean_square = (sums[:-1] / sums[-1]).chunk(2)
        variance = (mean_square - mean.square()).clamp(min=0.0)
        self._follow(mean.detach(), variance.detach(), sums[-1].detach())
        scale = self.weight * torch.rsqrt(variance + self.eps)
        shape = [1, -1] + [1] * (input.ndim - 2)
        shift = self.bias - mean * scale
        return (values * scale.view(shape) + shift.view(shape)).to(input.dtype)

    def _follow(self, mean: Tensor, variance: Tensor, rows: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * rows / (rows - 1.0).clamp(min=1.0), self.momentum)
