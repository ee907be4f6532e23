"""Products through oneDNN: those of torch to rounding, with their gradients."""

import pytest
import torch
from torch.nn import functional

from maw_gym.attention import products
from maw_gym.attention.products import linear


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.fixture(autouse=True)
def small_products_too(monkeypatch):
    monkeypatch.setattr(products, "WORTH", 0)


@pytest.mark.parametrize("lead", [(), (1,), (7,), (2, 3), (2, 0, 5)])
def test_the_product_of_x_and_the_transposed_weight(lead):
    x, weight = normal(*lead, 11), normal(5, 11)
    for found in (linear(x, weight), linear(x.mT.contiguous().mT if lead else x, weight)):
        assert (found.shape, found.dtype) == ((*lead, 5), torch.float32)
        torch.testing.assert_close(found, x @ weight.T, atol=1e-5, rtol=0)


@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
def test_gradients(wanted):
    gradients = []
    for product in (linear, functional.linear):
        x, weight = normal(2, 4, 6), normal(3, 6)
        matrices = [x.requires_grad_(wanted[0]), weight.requires_grad_(wanted[1])]
        product(x, weight).backward(normal(2, 4, 3))
        gradients.append([one.grad for one in matrices])
    for got, want in zip(*gradients, strict=True):
        assert (got is None) == (want is None)
        if want is not None:
            torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


def test_other_types_and_inference():
    x, weight = normal(4, 6), normal(3, 6)
    assert linear(x.double(), weight.double()).dtype == torch.float64
    assert linear(x.bfloat16(), weight.bfloat16()).dtype == torch.bfloat16
    with torch.inference_mode():
        torch.testing.assert_close(linear(x, weight), x @ weight.T, atol=1e-5, rtol=0)
