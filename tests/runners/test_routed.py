import numpy as np
import torch

from agents.fitting import router_settings
from maw_gym.corpora import Collection
from maw_gym.encoders.embedder import untrained_embedder
from maw_gym.encoders.maw import EncoderSettings
from maw_gym.routers.depth_router import DepthRouter
from maw_gym.tables.task import RetrievalTask
from runners.experiments.methods import by_router
from runners.experiments.settings import TaskSettings


def test_a_router_that_looks_at_searches_is_given_the_documents(tiny: Collection) -> None:
    """It prefers the depth whose best document is nearest, which only a search can tell."""
    embedder = untrained_embedder(tiny.doc_texts, EncoderSettings(depths=4))
    task = RetrievalTask(tiny, embedder)
    weight = torch.zeros(4, 44)
    weight[:, :4] = torch.eye(4)
    mean, scale = torch.zeros(44), torch.ones(44)
    settings = router_settings(task, "nearest")
    router = DepthRouter([(weight, torch.zeros(4))], "relu", mean, scale, ("retrieval",), settings)
    did = by_router(task, TaskSettings(), "test", router)
    assert did.depths is not None
    assert did.encode is not None
    seen = task.table("test").observation(("retrieval",))
    assert did.depths.tolist() == seen[:, :4].argmax(1).tolist()
    texts = tiny.splits["test"].texts
    expected = task.embedder.encode_queries(texts, torch.from_numpy(did.depths))
    np.testing.assert_allclose(did.encode(texts), expected, atol=1e-6)
