import pytest

from maw_gym.corpora.splits import balanced_shares, check_balance
from maw_gym.errors import InputError

GROUPS = ("a", "a", "b", "a")


@pytest.mark.parametrize(
    ("balance", "of_a", "of_b"),
    [
        (1, 1 / 4, 1 / 4),
        (0, 1 / 6, 1 / 2),  # each group half
        (0.5, 0.2113249, 0.3660254),  # the groups as sqrt(3) : 1
    ],
)
def test_groups_are_as_likely_as_a_power_of_their_size(balance, of_a, of_b):
    assert balanced_shares(GROUPS, balance) == pytest.approx([of_a, of_a, of_b, of_a], abs=1e-7)


@pytest.mark.parametrize("balance", [-0.1, 1.1, float("nan"), float("inf"), "0", None, True])
def test_other_exponents_are_refused(balance):
    with pytest.raises(InputError, match=r"^balance must be a number from 0 .* to 1 .*, got "):
        check_balance(balance)
