import numpy as np

from maw_gym.corpora.pydocs import near_duplicates


def test_pairs_are_over_the_threshold_and_not_at_it():
    ten = list("abcdefghij")  # 8 word 3-grams
    texts = [
        ten,
        [*ten[:9], "x"],  # 7 of 9 in common with the first: .78
        [*ten[:9], "y", "z"],  # 7 of 10: exactly .7
        [*ten[:8], "x", "j"],  # 6 of 10
        ["a", "b"],
        [],
    ]
    assert sorted(near_duplicates(texts, 0.7)) == [(0, 1)]
    assert sorted(map(sorted, near_duplicates(texts, 0.69))) == [[0, 1], [0, 2], [1, 2]]


def test_repeated_words_count_once():
    # abc, bca, cab in both.
    assert list(near_duplicates([list("abcabcabc"), list("bcabca")], 0.99)) == [(0, 1)]


def test_the_same_pairs_as_by_brute_force():
    random = np.random.default_rng(0)
    texts = [[str(word) for word in random.integers(0, 6, random.integers(3, 14))] for _ in "x" * 9]
    for text in list(texts) * 6:
        changed = list(text)
        changed[random.integers(len(changed))] = "new"
        texts.append(changed)
    grams = [set(zip(text, text[1:], text[2:], strict=False)) for text in texts]
    expected = {
        (one, other)
        for one in range(len(texts))
        for other in range(one)
        if len(grams[one] & grams[other]) / len(grams[one] | grams[other]) > 0.5
    }
    found = [(max(pair), min(pair)) for pair in near_duplicates(texts, 0.5)]
    assert len(found) == len(set(found))
    assert set(found) == expected
    assert len(expected) > 20
