"""Products of large matrices on a CPU, through oneDNN.

torch multiplies float32 matrices with the BLAS it is built with. In its wheels for x86 that is MKL,
which leaves half of an AMD processor's vector unit idle; oneDNN, which the wheels have as well,
writes its kernels for the processor at hand.
"""

import torch
from torch import Tensor
from torch.nn import functional

WORTH = 1 << 23  # multiplications above which copies to oneDNN's layout and back are worth while


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """``x @ weight.T`` (*, o) of x (*, h) and weight (o, h); with gradients it is torch's own."""
    matrices = (x, weight)
    large = x.numel() * weight.shape[0] >= WORTH
    plain = all(one.device.type == "cpu" and one.dtype == torch.float32 for one in matrices)
    learned = torch.is_grad_enabled() and any(one.requires_grad for one in matrices)
    if not (large and plain and torch.backends.mkldnn.is_available()) or learned:
        return functional.linear(x, weight)
    rows = x.reshape(-1, x.shape[-1])
    product: Tensor = functional.linear(rows.to_mkldnn(), weight.to_mkldnn()).to_dense()
    return product.view(*x.shape[:-1], len(weight))
