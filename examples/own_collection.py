"""A collection of one's own: a folder in BEIR's layout, which every dataset argument takes.

Run `python examples/own_collection.py [FOLDER]`; it prints

    6 documents; queries: encoder 0, train 3, validation 1, test 2
    q5 'tides of the sea' through depth 4: alignment 1.00
    q6 'bread without yeast' through depth 4: alignment 1.00

and `maw-gym train grpo --dataset FOLDER` would train on it, had it some hundreds of queries.
"""

import json
import sys
import tempfile
from pathlib import Path

import gymnasium as gym

import maw_gym

DOCUMENTS = {
    "d1": "Worker bees dry nectar in the hive until it is honey.",
    "d2": "The moon pulls at the sea, and the tide rises twice a day.",
    "d3": "Soda and buttermilk raise a loaf of bread without yeast.",
    "d4": "In autumn leaves lose their green, and red ones remain.",
    "d5": "Jupiter is heavier than all other planets together.",
    "d6": "A fifth lies between two neighbouring strings of a violin.",
}
QUERIES = {
    "train": {"q1": ("honey of bees", "d1"), "q2": ("red leaves", "d4"), "q3": ("planets", "d5")},
    "dev": {"q4": ("tuning a violin", "d6")},
    "test": {"q5": ("tides of the sea", "d2"), "q6": ("bread without yeast", "d3")},
}

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
(folder / "qrels").mkdir(parents=True, exist_ok=True)
rows = [json.dumps({"_id": name, "title": "", "text": text}) for name, text in DOCUMENTS.items()]
(folder / "corpus.jsonl").write_text("\n".join(rows))
with (folder / "queries.jsonl").open("w") as file:
    for part, queries in QUERIES.items():
        lines = ["query-id\tcorpus-id\tscore"]
        for query, (text, document) in queries.items():
            file.write(json.dumps({"_id": query, "text": text}) + "\n")
            lines.append(f"{query}\t{document}\t1")
        (folder / "qrels" / f"{part}.tsv").write_text("\n".join(lines))

collection = maw_gym.load_collection(str(folder))
counts = ", ".join(f"{split} {len(queries.ids)}" for split, queries in collection.splits.items())
print(f"{len(collection.doc_ids)} documents; queries: {counts}")

env = gym.make("MAWDepth-v0", dataset=str(folder), split="test", query_order="sequential")
for query, (text, _) in QUERIES["test"].items():
    env.reset(options={"query_id": query})
    info = env.step(4)[-1]
    print(f"{query} {text!r} through depth 4: alignment {info['alignment']:.2f}")
