"""Pairs of texts that share most of their words in the same order."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence


def near_duplicates(
    texts: Sequence[Sequence[str]], threshold: float, size: int = 3
) -> Iterator[tuple[int, int]]:
    """Pairs of texts whose word n-grams have a Jaccard similarity over `threshold`.

    Exact, by prefix filtering (Chaudhuri, Ganti and Kaushik, ICDE 2006): with the rarest n-grams
    first, two texts over the threshold share one of their first ``n - floor(threshold n)``.

    Args:
        texts: words of each text. A text of fewer than `size` words has no n-gram and no pair.
        threshold: in (0, 1).
        size: n, words in an n-gram.

    Yields:
        Indices of two texts, each pair once.
    """
    grams = [set(zip(*(words[k:] for k in range(size)), strict=False)) for words in texts]
    count = Counter(gram for text in grams for gram in text)
    # An n-gram of one text only leads to no other: it takes a place in the prefix, no more.
    shared = [gram for gram, texts_with_it in count.items() if texts_with_it > 1]
    # Which of two n-grams is the rarer must be the same for all texts.
    rank = {gram: place for place, gram in enumerate(sorted(shared, key=lambda g: (count[g], g)))}
    ranked = [sorted(rank[gram] for gram in text if gram in rank) for text in grams]
    sets = [frozenset(text) for text in ranked]
    index: defaultdict[int, list[int]] = defaultdict(list)
    for current in sorted(range(len(grams)), key=lambda i: len(grams[i])):
        length = len(grams[current])
        alone = length - len(ranked[current])
        prefix = ranked[current][: max(0, length - int(threshold * length) - alone)]
        candidates = {other for gram in prefix for other in index[gram]}
        for other in sorted(candidates):
            if len(grams[other]) <= threshold * length:
                continue
            common = len(sets[current] & sets[other])
            if common / (length + len(grams[other]) - common) > threshold:
                yield other, current
        for gram in prefix:
            index[gram].append(current)
