"""AdamW in one kernel, without PyTorch's compiler.

The first ``torch.optim`` optimiser of a process imports ``torch._dynamo``, to keep compiled code
out of its methods: a second or two of every worker's start, and nothing here is compiled.
"""

from __future__ import annotations

import inspect

import torch
from torch.optim.optimizer import ParamsT

_Base = torch.optim.AdamW


class AdamW(_Base):
    """:class:`torch.optim.AdamW` (Loshchilov and Hutter, ICLR 2019), its methods undecorated.

    Fused: for small networks on a CPU the seven operations of every parameter are a tenth of a
    step.
    """

    def __init__(self, params: ParamsT, *, lr: float, weight_decay: float) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay, fused=True)

    add_param_group = inspect.unwrap(_Base.add_param_group)
    zero_grad = inspect.unwrap(_Base.zero_grad)
    state_dict = inspect.unwrap(_Base.state_dict)
    load_state_dict = inspect.unwrap(_Base.load_state_dict)
    step = torch.no_grad()(inspect.unwrap(_Base.step))
