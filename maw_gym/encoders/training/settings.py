"""How encoders are trained, with the defaults."""

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import Field

from maw_gym.settings import Above0, Coefficient, Count, Index, Rate, Share, Whole, checked

if TYPE_CHECKING:
    import torch

    from maw_gym.encoders.text import TextEncoder

# Of a transformer that is trained along.
TUNED: Final = {
    "learning_rate": 5e-4,
    "token_learning_rate": 5e-3,
    "text_learning_rate": 1e-4,
    "batch_size": 256,
    "query_tokens": 40,
    "document_tokens": 128,
}


@checked
class TrainingSettings:
    """How an encoder is trained; part of its cache key. What begins with "depth" is stage 2's.

    The defaults are those of static token embeddings, see `suited` for transformers.

    Raises:
        InputError: a setting is out of its range.
    """

    epochs: Index = 5
    """of the standard attention"""
    learning_rate: Rate = 2e-3
    """peak of the one-cycle schedule for the projections of the standard attention"""
    token_learning_rate: Rate = 2e-2
    """the same for the pooling weight of each token"""
    depth_epochs: Index = 6
    """of the depths"""
    depth_learning_rate: Rate = 1e-2
    """peak for what the projections of all depths have in common"""
    depth_own_learning_rate: Rate = 1e-3
    """peak for what each depth's projections have of their own"""
    depth_negatives: Count = 8192
    """a query is ranked among all relevant documents of the training queries, or among this many of
    them, drawn anew in every step, where there are more"""
    weight_decay: Coefficient = 0.01
    """of AdamW, on the projections"""
    batch_size: Count = 512
    """queries per step; the first stage ranks each among the documents of the batch"""
    temperature: Above0 = 0.05
    """cosines are divided by it"""
    query_tokens: Count = 32
    """queries are cut here in training"""
    document_tokens: Count = 128
    """documents are cut here in the first stage"""
    train_text_encoder: bool = False
    """train the text encoder along in the first stage: token embeddings, or the transformer"""
    text_learning_rate: Rate = 1e-2
    """peak for it"""
    balance: Share = 1.0
    """exponent on the sizes of the groups of queries, such as packages: 1 learns from all queries
    alike, 0 from all groups alike"""
    seed: Annotated[Whole, Field(ge=0, lt=2**63)] = 0
    """of the order of the pairs and the draws of depths and documents"""

    def suited(self, text: "TextEncoder", device: "torch.device | str") -> "TrainingSettings":
        """These settings for a text encoder: what is left at its default takes a value that suits.

        A frozen transformer is trained on texts as long as they are searched, so that their states
        are computed once. One that is trained along learns at a rate of its own, from shorter texts
        and in smaller batches, for 4 epochs on a GPU and for one on a CPU.
        """
        # Late: settings are checked, and shown in a help, where torch is not needed.
        from maw_gym.encoders.embedder import DOCUMENT_TOKENS, QUERY_TOKENS

        values: dict[str, Any] = {}
        if not text.static:
            values = {"query_tokens": QUERY_TOKENS, "document_tokens": DOCUMENT_TOKENS}
            if self.train_text_encoder:
                values |= TUNED | {"epochs": 1 if str(device).startswith("cpu") else 4}
            longest = text.positions or DOCUMENT_TOKENS
            for name in ("query_tokens", "document_tokens"):
                values[name] = min(values[name], longest)
        mine, default = asdict(self), asdict(TrainingSettings())
        return replace(self, **{n: v for n, v in values.items() if mine[n] == default[n]})

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON values; nothing of `balance` where all queries count alike."""
        told = asdict(self)
        if self.balance == 1:
            del told["balance"]
        return told

    def of_attention(self) -> dict[str, Any]:
        """Those that the first stage depends on, as JSON values."""
        return {name: value for name, value in self.to_json().items() if name[:5] != "depth"}
