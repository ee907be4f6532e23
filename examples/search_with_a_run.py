"""Search documents of one's own with the encoder and the router of a trained run.

Run `maw-gym train grpo --run-name mine` and `python examples/search_with_a_run.py runs/mine`; it
prints something like

    depth 26: how do I read a file line by line
      0.505 lines
      -0.029 numbers
      -0.138 honey
"""

import sys

from maw_gym import RoutedEncoder

DOCUMENTS = {
    "lines": "Iterate over the open file: each turn reads and gives one line of text.",
    "numbers": "Return the numbers of an array in ascending order.",
    "honey": "Worker bees dry nectar in the hive until it is honey.",
}

retriever = RoutedEncoder.from_run(sys.argv[1], device="cpu")
retriever.index(DOCUMENTS.keys(), DOCUMENTS.values())

query = "how do I read a file line by line"
(depth,) = retriever.route([query])
print(f"depth {depth}: {query}")
for document in retriever.search(query, k=3):
    print(f"  {document['score']:.3f} {document['id']}")
