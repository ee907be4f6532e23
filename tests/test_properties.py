"""What holds for every input: Hypothesis looks for one that it does not hold for."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maw_gym.encoders.maw import EncoderSettings, MAWEncoder

quick = settings(max_examples=25, deadline=None, derandomize=True)

LENGTHS = st.lists(st.integers(0, 20), min_size=1, max_size=5)
SEEDS = st.integers(0, 2**32 - 1)
SHAPE = EncoderSettings(hidden=16, heads=2, depths=3, vocabulary=50)


def masks(lengths: list[int], padding: int = 0) -> torch.Tensor:
    """(B, S) bool: texts of these lengths, real tokens first."""
    return torch.arange(max(lengths) + padding) < torch.tensor(lengths)[:, None]


@quick
@given(LENGTHS, st.integers(1, 8), st.floats(1e-3, 50), SEEDS)
def test_padding_changes_nothing(lengths, padding, scale, seed):
    """Whatever stands in it; a text has a unit vector, one without tokens the zero vector."""
    generator = torch.Generator().manual_seed(seed)
    encoder = MAWEncoder(SHAPE).eval()
    mask, wide = masks(lengths), masks(lengths, padding)
    (batch, size), cut, count = wide.shape, mask.shape[1], torch.tensor(lengths)
    ids = torch.randint(50, (batch, size), generator=generator)
    hidden = torch.randn(batch, size, 16, generator=generator) * scale
    other = hidden.masked_fill(~wide[..., None], 1e3)
    with torch.no_grad():
        encoder.token_weight.copy_(torch.randn(50, generator=generator))
        for depth in (None, torch.randint(3, (batch,), generator=generator)):
            narrow = encoder.embed(ids[:, :cut], hidden[:, :cut], mask, depth=depth)
            for given_hidden in (hidden, other):
                padded = encoder.embed(ids, given_hidden, wide, depth=depth)
                torch.testing.assert_close(padded, narrow, atol=1e-5, rtol=0)
            torch.testing.assert_close(padded.norm(dim=-1), (count > 0).float(), atol=1e-5, rtol=0)
        few = encoder.depth_statistics(ids[:, :cut], hidden[:, :cut], mask, exact=True)
        many = encoder.depth_statistics(ids, hidden, wide, exact=True)
    for one, other in zip(few, many, strict=True):
        assert other.isfinite().all()
        torch.testing.assert_close(other, one, atol=1e-5, rtol=0)
    assert all(((term >= 0) & (term <= 1)).all() for term in (many.entropy, many.focus))
    assert (many.embeddings[count == 0] == 0).all()
    assert (many.entropy[count <= 1] == 0).all()
    assert (many.focus[count == 1] == 1).all()
