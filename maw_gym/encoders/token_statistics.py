"""What is known of a text from its tokens alone, before any attention."""

import torch
from torch import Tensor, nn


def mean_content(hidden: Tensor, mask: Tensor) -> Tensor:
    """The observation block `content`: hidden states (B, S, h) averaged over real tokens (B, h).

    Of unit length, or zero for a text without tokens.
    """
    total = torch.einsum("bs,bsh->bh", mask.to(hidden.dtype), hidden)
    return nn.functional.normalize(total, dim=-1)


def idf_token_weights(token_ids: list[list[int]], vocabulary: int) -> Tensor:
    """Start of the pooling weights: log max(idf, 0.5) of every token id.

    Args:
        token_ids: the documents' token ids.
        vocabulary: number of token ids.

    Returns:
        (vocabulary,), with idf = log((N + 1) / (documents with the token + 0.5)).
    """
    counts = torch.zeros(vocabulary)
    for ids in token_ids:
        if ids:
            counts[torch.tensor(sorted(set(ids)))] += 1
    idf = torch.log((len(token_ids) + 1) / (counts + 0.5))
    return idf.clamp(min=0.5).log()
