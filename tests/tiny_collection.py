"""A BEIR folder of 30 documents and 24 queries: small, but about something."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

# Query, and the document that answers it.
PAIRS = (
    ("how bees make honey", "Worker bees gather nectar and dry it in the hive until it is honey."),
    ("cause of ocean tides", "The pull of the moon lifts the sea, so the water rises twice a day."),
    ("baking bread without yeast", "Soda and buttermilk raise a loaf of flour quickly."),
    ("repair a flat bicycle tyre", "Lift the wheel off, find the hole in the tube and patch it."),
    ("why leaves turn red", "In autumn trees stop making green pigment and other colours show."),
    ("largest planet", "Jupiter is heavier than all other planets of the solar system together."),
    ("tuning a violin", "Turn the pegs until each string sounds a fifth above the next."),
    ("symptoms of influenza", "Fever, cough and aching muscles begin suddenly and last a week."),
    ("growing tomatoes", "Plant the seedlings in warm soil, water them and tie up the stems."),
    ("history of printing", "Gutenberg cast movable metal type and printed books in Mainz."),
    ("whales that sing", "Humpback males repeat long songs under water for hours."),
    ("how volcanoes erupt", "Molten rock full of gas rises and breaks through the crust as lava."),
    ("rules of chess", "The king may not be left in check; bishops move along diagonals."),
    ("desert animals", "Camels and lizards survive heat and months without water."),
    ("learning to swim", "Float on the back first, then kick and breathe out under water."),
    ("sorting numbers quickly", "Quicksort splits a list around a pivot and sorts both halves."),
    ("making cheese", "Rennet curdles the milk; the curd is pressed, salted and aged."),
    ("light bulbs that save power", "A diode lamp turns most electricity into light, not heat."),
    ("building a wooden boat", "Bend the planks over the frame and seal the seams with tar."),
    ("origin of coffee", "Goat herds in Ethiopia found the berries that kept them awake."),
    ("earthquake warning", "Sensors notice the first weak waves and sound an alarm in time."),
    ("training a young dog", "Reward the puppy at once when it sits or comes as told."),
    ("polar ice melting", "Glaciers in the arctic shrink as the climate grows warmer."),
    ("wearing glasses", "Lenses bend the light so that the image falls on the retina."),
)
ALONE = (
    "Trains left the station every ten minutes.",
    "The museum shows paintings from four centuries.",
    "A mortgage is repaid in monthly rates.",
    "Knitting needs two needles and wool.",
    "The court heard the witness on Monday.",
    "Batteries store energy in chemical form.",
)
TRAIN, DEV = 12, 5  # the other 7 queries are test


def write_beir(
    folder: Path,
    documents: Iterable[tuple[str, str]],
    queries: Iterable[tuple[str, str]],
    judged: Mapping[str, Iterable[tuple[str, str, int]]],
) -> Path:
    """Write ids and texts, and by part query, document and grade."""
    (folder / "qrels").mkdir(parents=True)
    for name, texts in (("corpus", documents), ("queries", queries)):
        lines = [json.dumps({"_id": key, "title": "", "text": text}) + "\n" for key, text in texts]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    for part, rows in judged.items():
        lines = ["\t".join(map(str, row)) for row in [("query-id", "corpus-id", "score"), *rows]]
        (folder / "qrels" / f"{part}.tsv").write_text("\n".join(lines) + "\n")
    return folder


def write_tiny_collection(folder: Path) -> Path:
    """Write the collection in BEIR's layout: 12 training, 5 dev and 7 test queries.

    Query qI has the document dI with grade 2; test queries have the document before it with grade 1
    as well.
    """
    documents = [*(document for _, document in PAIRS), *ALONE]
    rows, test = range(len(PAIRS)), TRAIN + DEV
    best = [(f"q{row}", f"d{row}", 2) for row in rows]
    second = [(f"q{row}", f"d{row - 1}", 1) for row in rows[test:]]
    return write_beir(
        folder,
        [(f"d{row}", text) for row, text in enumerate(documents)],
        [(f"q{row}", query) for row, (query, _) in enumerate(PAIRS)],
        {"train": best[:TRAIN], "dev": best[TRAIN:test], "test": [*best[test:], *second]},
    )
