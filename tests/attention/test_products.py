"""Products through oneDNN: those of torch to rounding, with their gradients."""

import pytest
import torch
from torch import Tensor

from maw_gym.attention import products
from maw_gym.attention.products import linear


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.fixture(autouse=True)
def small_products_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "WORTH", 0)


@pytest.mark.parametrize("lead", [(), (1,), (7,), (2, 3), (2, 0, 5)])
def test_the_product_of_x_and_the_transposed_weight(lead: tuple[int, ...]) -> None:
    x, weight = normal(*lead, 11), normal(5, 11)
    found = linear(x, weight)
    assert (found.shape, found.dtype, found.layout) == ((*lead, 5), torch.float32, torch.strided)
    torch.testing.assert_close(found.double(), x.double() @ weight.double().T, atol=1e-5, rtol=0)


def test_by_hand() -> None:
    x = torch.tensor([[1.0, 2.0], [0.0, -1.0]])
    weight = torch.tensor([[3.0, 1.0], [1.0, 1.0], [0.5, 0.0]])
    assert linear(x, weight).tolist() == [[5, 3, 0.5], [-1, -1, 0]]


def test_views_that_do_not_lie_in_order() -> None:
    x, weight = normal(9, 6).T[1:], normal(8, 9)[::2]
    torch.testing.assert_close(linear(x, weight), x @ weight.T, atol=1e-5, rtol=0)


@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
def test_gradients(wanted: tuple[bool, bool]) -> None:
    x, weight, gradient = normal(2, 4, 6), normal(3, 6), normal(2, 4, 3)
    found: list[Tensor | None] = []
    expected: list[Tensor | None] = []
    for product, gradients in ((linear, found), (torch.nn.functional.linear, expected)):
        matrices = [x.clone().requires_grad_(wanted[0]), weight.clone().requires_grad_(wanted[1])]
        product(*matrices).backward(gradient)
        gradients += [one.grad for one in matrices]
    for got, want, asked in zip(found, expected, wanted, strict=True):
        assert (got is not None) == asked
        if asked:
            torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


def test_other_types_and_inference() -> None:
    x, weight = normal(4, 6), normal(3, 6)
    assert linear(x.double(), weight.double()).dtype == torch.float64
    assert linear(x.bfloat16(), weight.bfloat16()).dtype == torch.bfloat16
    with torch.inference_mode():
        torch.testing.assert_close(linear(x, weight), x @ weight.T, atol=1e-5, rtol=0)
