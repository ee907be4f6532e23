"""The folder of a finished run whose ids and texts try to be more than text."""

import json

import torch
from tiny_collection import ALONE, PAIRS, write_beir
from torch.utils.tensorboard import SummaryWriter

from maw_gym.corpora import load_collection
from maw_gym.encoders.embedder import untrained_embedder
from maw_gym.encoders.files import save_embedder
from maw_gym.encoders.maw import EncoderSettings
from maw_gym.routers.depth_router import DepthRouter, save_router

DEPTHS = 4
CHOSEN = 2  # by the router, for every query
SCRIPT = '</script><script>window.owned = 1; document.title = "owned"</script>'
IMAGE = '<img src="x" onerror="window.owned = 1">'
SCRIPT_ID = "</script><script>window.owned=1</script>"  # an id has no white space
IMAGE_ID = "<img/src=x/onerror=window.owned=1>"
BELL = "a bell \x07, an escape \x1b[31m, a turn \u202eback"
LONG = "abcdefghij" * 1000
QUERIES = (
    *((f"q{row}", query) for row, (query, _) in enumerate(PAIRS[:5], 1)),
    (f"q6{SCRIPT_ID}", f"{SCRIPT} honey"),
    (f"q7{IMAGE_ID}", f"{IMAGE} tides &amp; &lt;b&gt;moon&lt;/b&gt;"),
    ("q8\x07\u202e", f"{BELL} bread"),
    ("q9" + LONG, LONG),
)
DOCUMENTS = (
    *((f"d{row}", document) for row, (_, document) in enumerate(PAIRS[:5], 1)),
    (f"d6{SCRIPT_ID}", f"Honey {SCRIPT}"),
    (f"d7{IMAGE_ID}", f"Tides and the moon {IMAGE}"),
    ("d8\x1b\u2066", f"Bread: {BELL}"),
    ("d9" + LONG, LONG),
    *((f"d{row}", document) for row, document in enumerate(ALONE[:3], 10)),
)


def write_hostile_run(folder):
    """Write the run into `folder`, and its collection beside it in BEIR's layout.

    It has 4 training, 1 dev and 4 test queries, the hostile ones; qI wants dI.
    """
    pairs = enumerate(zip(QUERIES, DOCUMENTS, strict=False))
    judged = [(query[0], document[0], 2 if row == 5 else 1) for row, (query, document) in pairs]
    parts = {"train": judged[:4], "dev": judged[4:5], "test": judged[5:]}
    dataset = write_beir(folder.parent / "collection", DOCUMENTS, QUERIES, parts)
    collection = load_collection(str(dataset))
    folder.mkdir()
    embedder = untrained_embedder(collection.doc_texts, EncoderSettings(depths=DEPTHS))
    save_embedder(folder / "encoder.safetensors", embedder, {})
    bias = torch.zeros(DEPTHS)
    bias[CHOSEN] = 1
    width = 2 * DEPTHS
    layers, about = [(torch.zeros(DEPTHS, width), bias)], {"encoder": embedder.fingerprint()}
    standard = torch.zeros(width), torch.ones(width)
    router = DepthRouter(layers, "relu", *standard, ("profile",), about)
    save_router(folder / "router.safetensors", router)
    settings = {"dataset": str(dataset), "fold": 0, "device": "cpu", "alignment": "ndcg"}
    settings |= {"reward_weights": [0.5, 0.25, 0.25], SCRIPT: IMAGE}
    (folder / "config.json").write_text(json.dumps({"learner": SCRIPT, "settings": settings}))
    retrieval = {"nDCG@10": 0.5, "RR@10": 0.25, "R@100": 1.0, "Success@10": 0.75}
    baselines = {
        IMAGE: {"reward": None, "retrieval": retrieval},
        "oracle, upper bound": {"reward": {"mean": 0.75, "gap_closed": 1.0}, "retrieval": {}},
        "random depth": {"reward": {"mean": 0.5, "gap_closed": None}, "retrieval": retrieval},
    }
    own = {"reward": {"mean": 0.625, "gap_closed": 0.5}, "retrieval": retrieval}
    (folder / "metrics.json").write_text(json.dumps({**own, "baselines": baselines}))
    with SummaryWriter(str(folder)) as writer:
        for step, value in ((0, 0.25), (10, 0.5), (20, 0.75)):
            writer.add_scalar("eval/reward", value, step)
            writer.add_scalar("train/" + IMAGE, value, step)
            writer.add_scalar("time/fps", 1.0, step)
    return folder
