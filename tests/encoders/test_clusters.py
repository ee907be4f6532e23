import math

import pytest
import torch

from maw_gym.encoders.clusters import cluster, contents, nearest
from maw_gym.encoders.encoder_files import untrained_embedder
from maw_gym.encoders.encoder_settings import EncoderSettings
from maw_gym.errors import InputError


def unit(*degrees):
    angles = torch.tensor(degrees) * math.pi / 180
    return torch.stack([angles.cos(), angles.sin()], 1)


# Two pairs, at right angles to each other: about 10 degrees and about 100.
POINTS = unit(0.0, 20.0, 90.0, 110.0)


@pytest.mark.parametrize("seed", range(8))
def test_four_points_in_two_clusters(seed):
    # Starting from both points of a pair, the further one takes the other pair along and loses its
    # first point afterwards: every start ends at the middles.
    centroids = cluster(POINTS, 2, seed)
    found = centroids[centroids[:, 1].argsort()]
    assert torch.allclose(found, unit(10.0, 100.0), atol=1e-6)


def test_one_iteration_by_hand():
    # Seed 3 starts from the points at 90 and 110 degrees: those at 0 and 20 are nearer to 90.
    start = torch.randperm(4, generator=torch.Generator().manual_seed(3))[:2]
    assert start.tolist() == [2, 3]
    total = POINTS[:3].sum(0)
    expected = torch.stack([total / total.norm(), POINTS[3]])
    assert torch.allclose(cluster(POINTS, 2, 3, iterations=1), expected, atol=1e-6)


def test_no_iteration_gives_the_start():
    assert torch.equal(cluster(POINTS, 4, 0, 0).sort(0).values, POINTS.sort(0).values)


def test_more_clusters_than_texts():
    centroids = cluster(POINTS[:2], 5, seed=0)
    assert centroids.shape == (5, 2)
    # Equal centroids: the first takes the texts, the others keep their place.
    assert len(centroids.unique(dim=0)) == 2
    assert torch.allclose(centroids.norm(dim=1), torch.ones(5))


def test_the_seed_chooses_the_start():
    content = torch.nn.functional.normalize(
        torch.randn(50, 8, generator=torch.Generator().manual_seed(0)), dim=1
    )
    assert torch.equal(cluster(content, 5, 1), cluster(content, 5, 1))
    assert not torch.equal(cluster(content, 5, 1), cluster(content, 5, 2))


def test_texts_without_tokens_do_no_harm():
    centroids = cluster(torch.cat([torch.zeros(3, 2), POINTS]), 3, seed=0)
    assert centroids.isfinite().all()


def test_no_text():
    with pytest.raises(InputError, match=r"^no text to make 3 clusters of$"):
        cluster(torch.zeros(0, 8), 3, 0)


def test_contents_and_nearest():
    embedder = untrained_embedder([], EncoderSettings(depths=2))
    table = embedder.text.embedding
    found = contents(embedder, [[5], [], [5, 7, 7]])
    assert torch.allclose(found[0], table[5] / table[5].norm(), atol=1e-6)
    assert found[1].tolist() == [0.0] * 256
    total = table[5] + 2 * table[7]
    assert torch.allclose(found[2], total / total.norm(), atol=1e-6)
    embedder.maw.centroids = torch.nn.functional.normalize(table[[7, 5]], dim=1)
    assert nearest(embedder, [[5], [7], [7, 7, 5]]).tolist() == [1, 0, 0]
