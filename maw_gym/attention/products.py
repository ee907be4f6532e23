"""Products of large matrices on a CPU, through oneDNN.

torch multiplies float32 matrices with the BLAS it is built with. In its wheels for x86 that is MKL,
which leaves half of an AMD processor's vector unit idle; oneDNN, which the wheels have as well,
writes its kernels for the processor at hand.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

WORTH = 1 << 23  # multiplications above which copies to oneDNN's layout and back are worth while


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """``x @ weight.T`` (*, o) of x (*, h) and weight (o, h), with gradients."""
    matrices = (x, weight)
    large = x.numel() * weight.shape[0] >= WORTH
    plain = all(one.device.type == "cpu" and one.dtype == torch.float32 for one in matrices)
    if not (large and plain and torch.backends.mkldnn.is_available()):
        return functional.linear(x, weight)
    multiply: Callable[[Tensor, Tensor], Tensor] = _Linear.apply
    product = multiply(x.reshape(-1, x.shape[-1]), weight)
    return product.view(*x.shape[:-1], len(weight))


def _product(left: Tensor, right: Tensor) -> Tensor:
    return functional.linear(left.to_mkldnn(), right.to_mkldnn()).to_dense()


class _Linear(torch.autograd.Function):
    """With gradients, which torch has not for going to oneDNN's layout and back."""

    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor) -> Tensor:
        context.save_for_backward(x, weight)
        return _product(x, weight)

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = context.saved_tensors
        for_x, for_weight = context.needs_input_grad
        return (
            _product(gradient, weight.T) if for_x else None,
            _product(gradient.T, x.T) if for_weight else None,
        )
