"""Products through oneDNN: those of torch to rounding; where gradients are asked for, torch's."""

import pytest
import torch

from maw_gym.attention import products
from maw_gym.attention.products import linear


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("lead", [(), (1,), (7,), (2, 3), (2, 0, 5)])
def test_the_product_of_x_and_the_transposed_weight(lead, monkeypatch):
    monkeypatch.setattr(products, "WORTH", 0)  # small products too
    x, weight = normal(*lead, 11), normal(5, 11)
    for found in (linear(x, weight), linear(x.mT.contiguous().mT if lead else x, weight)):
        assert (found.shape, found.dtype) == ((*lead, 5), torch.float32)
        torch.testing.assert_close(found, x @ weight.T, atol=1e-5, rtol=0)
    for kind in (torch.float64, torch.bfloat16):
        assert linear(x.to(kind), weight.to(kind)).dtype == kind
    with torch.inference_mode():
        torch.testing.assert_close(linear(x, weight), x @ weight.T, atol=1e-5, rtol=0)
    linear(x, weight.requires_grad_()).sum().backward()
    torch.testing.assert_close(weight.grad, x.view(-1, 11).sum(0).expand(5, 11))
