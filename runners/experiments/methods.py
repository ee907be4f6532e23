"""The methods that a comparison can run, by name."""

import difflib
from collections.abc import Sequence
from typing import Final, NamedTuple

from maw_gym.errors import InputError


class Method(NamedTuple):
    """A way to rank documents.

    Attributes:
        kind: "ranker" (no encoder of ours), "encoder" (nothing is routed), "static" (a rule chooses
            the depth), "learner" (training chooses it), "oracle" (reads the answers).
        about: what it is, in a line.
        seeded: whether it differs from seed to seed.
        cost: "dear" is left out by `--quick`, "very dear" runs only when it is asked for.
    """

    kind: str
    about: str
    seeded: bool = False
    cost: str = "cheap"


METHODS: Final[dict[str, Method]] = {
    "bm25": Method("ranker", "BM25 (Lucene's, k1 1.2, b 0.75) over the whole collection"),
    "mean-pooling": Method("encoder", "mean of the token embeddings, no attention"),
    "non-maw-zero-shot": Method("encoder", "NON-MAW encoder, untrained"),
    "standard-attention": Method(
        "encoder", "the MAW encoder's own standard attention, which encodes its documents"
    ),
    "non-maw-trained": Method(
        "encoder",
        "NON-MAW encoder, same pairs and optimiser steps as the MAW encoder's two stages",
        cost="dear",
    ),
    "non-maw-wide": Method(
        "encoder",
        "NON-MAW encoder with the MAW encoder's number of parameters, same pairs and steps",
        cost="very dear",
    ),
    "maw-single": Method(
        "encoder",
        "MAW encoder with one untied depth, same pairs and steps: nothing is chosen",
        cost="dear",
    ),
    "random": Method("static", "a depth drawn uniformly for each query", seeded=True),
    "best-fixed-reward": Method("static", "the depth of largest mean reward on training queries"),
    "best-fixed-ndcg": Method("static", "the depth of largest mean nDCG@10 on training queries"),
    "observed-reward": Method(
        "static",
        "the depth of largest reward, as far as entropy, focus and the depths' mean alignment on"
        " training queries tell",
    ),
    "rule-constant": Method("static", "the rule's most common label of training queries"),
    "cluster": Method("static", "the depth specialised on the query's nearest cluster"),
    "supervised-rule": Method("learner", "classifier on the rule's labels", seeded=True),
    "supervised-oracle": Method("learner", "classifier on each query's best depth", seeded=True),
    "full-information": Method(
        "learner", "the same network on the rewards of all depths: no exploration", seeded=True
    ),
    "ppo": Method("learner", "PPO of Stable-Baselines3", seeded=True),
    "grpo": Method("learner", "GRPO", seeded=True),
    "oracle": Method("oracle", "the depth of largest reward on the test query itself"),
    "oracle-ndcg": Method("oracle", "the depth of largest nDCG@10 on the test query itself"),
}

# Names of `agents.baseline_encoders` and `agents.baselines`.
ENCODERS: Final = {
    "mean-pooling": "mean_pooling",
    "non-maw-zero-shot": "zero_shot",
    "non-maw-trained": "non_maw",
    "non-maw-wide": "wide_non_maw",
    "maw-single": "single_depth",
}
STATIC: Final = {
    "best-fixed-reward": "best_fixed",
    "best-fixed-ndcg": "best_fixed_ndcg",
    "observed-reward": "observed_reward",
    "rule-constant": "rule",
    "cluster": "nearest_cluster",
}


def check_methods(names: Sequence[str]) -> None:
    """Refuse names that are no method, or that are given twice.

    Raises:
        InputError: with the nearest name.
    """
    for name in names:
        if name not in METHODS:
            close = difflib.get_close_matches(name, METHODS, n=1)
            question = f"did you mean {close[0]!r}? " if close else ""
            raise InputError(f"unknown method {name!r}: {question}choose from {', '.join(METHODS)}")
    if len(set(names)) != len(names):
        twice = next(name for row, name in enumerate(names) if name in names[:row])
        raise InputError(f"method {twice!r} is given twice")
