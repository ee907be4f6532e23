"""What is refused in one line."""

import pytest

from maw_gym.corpora import load_collection
from maw_gym.errors import InputError


def refused(name, *parts, **folds):
    """A collection that cannot be loaded, and what the message says."""
    with pytest.raises(InputError) as caught:
        load_collection(name if name is None else str(name), **folds)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert str(part) in str(caught.value)
