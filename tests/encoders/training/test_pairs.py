import pytest
import torch

from maw_gym.corpora import Collection
from maw_gym.corpora.collection import Groups
from maw_gym.encoders.embedder import untrained_embedder
from maw_gym.encoders.training.selection import grouping
from maw_gym.encoders.training.settings import TrainingSettings
from maw_gym.encoders.training.stages import epoch_rows, pairs_of
from maw_gym.errors import InputError


def learned_from(tiny: Collection) -> Collection:
    """The tiny collection with three queries to train encoders on, two of them in a group."""
    queries = tiny.splits["test"].select([0, 1, 2])
    splits = {**tiny.splits, "encoder": queries}
    groups = Groups({queries.ids[0]: "left", queries.ids[2]: "right"}, {})
    return tiny._replace(name="tiny", splits=splits, groups=groups)


def test_pairs_know_their_groups(tiny: Collection) -> None:
    collection = learned_from(tiny)
    pairs = pairs_of([collection, collection], untrained_embedder(tiny.doc_texts))
    assert pairs.groups == ["left", "tiny", "right"] * 2
    empty = collection.splits["encoder"]._replace(texts=("", "bees", "tides"))
    without = collection._replace(splits={**collection.splits, "encoder": empty})
    # A text without tokens is no pair.
    assert pairs_of([without], untrained_embedder(tiny.doc_texts)).groups == ["tiny", "right"]


def test_an_epoch_takes_every_query_once_unless_groups_are_to_be_balanced() -> None:
    groups = ["a"] * 90 + ["b"] * 10
    once = epoch_rows(groups, 1, torch.Generator().manual_seed(5))
    assert torch.equal(once, torch.randperm(100, generator=torch.Generator().manual_seed(5)))
    generator = torch.Generator().manual_seed(0)
    rows = torch.cat([epoch_rows(groups, 0, generator) for _ in range(200)])
    assert len(rows) == 20_000
    assert (rows >= 90).double().mean().item() == pytest.approx(0.5, abs=0.02)
    drawn = torch.bincount(rows, minlength=100)[90:]
    assert drawn.double().numpy() == pytest.approx([1000] * 10, abs=150)


def test_settings_of_before_balance_are_the_same() -> None:
    assert "balance" not in TrainingSettings().to_json()
    assert TrainingSettings(**TrainingSettings().to_json()) == TrainingSettings()
    assert TrainingSettings(balance=0.5).to_json()["balance"] == 0.5
    assert TrainingSettings(balance=0.5).of_attention()["balance"] == 0.5
    with pytest.raises(InputError, match=r"^balance must be at most 1, got 2"):
        TrainingSettings(balance=2)


def test_groups_are_part_of_a_key_where_they_matter(tiny: Collection) -> None:
    collection = learned_from(tiny)
    assert grouping([collection], TrainingSettings().to_json()) == {}
    asked = grouping([collection], TrainingSettings(balance=0).to_json())
    assert asked == {"groups": [dict(collection.groups.queries)]}
