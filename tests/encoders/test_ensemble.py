import pytest
import torch

from maw_gym.encoders.encoder_files import untrained_embedder
from maw_gym.encoders.encoder_settings import EncoderSettings
from maw_gym.encoders.ensemble import ensemble_queries
from maw_gym.errors import InputError


def test_the_ensemble_is_the_mean_of_all_depths(tiny):
    embedder = untrained_embedder(tiny.doc_texts, EncoderSettings(depths=3))
    with torch.no_grad():
        embedder.maw.value_proj.weight.mul_(-20)  # so that attention matters
    texts = ["how bees make honey", "", "bread", "the largest planet of all"]
    found = ensemble_queries(embedder, texts)
    each = [embedder.encode_queries(texts, torch.full((4,), depth)) for depth in range(3)]
    assert not torch.allclose(each[0], each[2], atol=1e-2)
    mean = torch.stack(each).mean(0)
    for row, length in ((0, 1.0), (1, 0.0), (2, 1.0), (3, 1.0)):
        assert found[row].norm().item() == pytest.approx(length, abs=1e-6)
        expected = mean[row] / mean[row].norm().clamp(min=1e-9)
        torch.testing.assert_close(found[row], expected, atol=1e-5, rtol=0)


def test_the_ensemble_needs_depths(tiny):
    plain = untrained_embedder(tiny.doc_texts, EncoderSettings(depths=0))
    with pytest.raises(InputError, match="NON-MAW"):
        ensemble_queries(plain, ["bread"])
