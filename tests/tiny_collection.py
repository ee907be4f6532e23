"""A BEIR folder of 30 documents and 24 queries: small, but about something."""

import json
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


def write_tiny_collection(folder: Path) -> Path:
    """Write the collection in BEIR's layout: 12 training, 5 dev and 7 test queries.

    Query qI has the document dI with grade 2; test queries have the document before it with grade 1
    as well.
    """
    (folder / "qrels").mkdir(parents=True)
    documents = [*(document for _, document in PAIRS), *ALONE]
    corpus = [{"_id": f"d{row}", "title": "", "text": text} for row, text in enumerate(documents)]
    queries = [{"_id": f"q{row}", "text": query} for row, (query, _) in enumerate(PAIRS)]
    for name, records in (("corpus", corpus), ("queries", queries)):
        lines = [json.dumps(record) + "\n" for record in records]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    ends = {"train": (0, TRAIN), "dev": (TRAIN, TRAIN + DEV), "test": (TRAIN + DEV, len(PAIRS))}
    for part, rows in ends.items():
        lines = ["query-id\tcorpus-id\tscore\n"]
        for row in range(*rows):
            lines.append(f"q{row}\td{row}\t2\n")
            if part == "test":
                lines.append(f"q{row}\td{row - 1}\t1\n")
        (folder / "qrels" / f"{part}.tsv").write_text("".join(lines))
    return folder
