import unicodedata

import pytest

from maw_gym.corpora.text import comparable, encodable, normal, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Wing-body wings, C_1!", ["wing", "body", "wings", "c_1"]),
        ("don't naïve Straße", ["don", "t", "naïve", "straße"]),
        ("日本料理", ["日本", "本料", "料理"]),
        ("猫", ["猫"]),
        ("東京2020年ABC", ["東京", "2020", "年", "abc"]),
        ("カタカナ と かな", ["カタ", "タカ", "カナ", "と", "かな"]),
        ("한국어 책", ["한국", "국어", "책"]),
        ("ง่าย", ["ง่า", "าย"]),  # a tone mark stays on its letter
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("كَتَبَ", ["كَتَبَ"]),
        ("می\u200cخواهم", ["می\u200cخواهم"]),
        ("👩\u200d💻 🙂", []),
        ("", []),
    ],
)
def test_words_of_the_world(text, expected):
    assert words(text) == expected
    assert words(unicodedata.normalize("NFD", text)) == expected
    assert normal(unicodedata.normalize("NFD", text)) == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize(
    ("texts", "different"),
    [
        (("What is a wing?", "what is  a wing"), 1),
        (("résumé", "re\u0301sume\u0301"), 1),
        (("“the wing”, he said…", '"the wing", he said'), 1),
        (("how to learn C", "how to learn C++", "how to learn C#"), 3),
        (("what does -> mean", "what does => mean", "what does :: mean", "what does && mean"), 4),
        (("दिन", "दीन", "दान"), 3),
        (("เสื้อ", "เสือ"), 2),
        (("كَتَبَ", "كُتُب"), 2),
        (("🙂", "🚀", "🍕"), 3),
    ],
)
def test_texts_that_differ_in_symbols_or_marks_are_different(texts, different):
    assert len({comparable(text) for text in texts}) == different


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\ud800b", "a\ufffdb"),
        ("\udc00", "\ufffd"),
        ("\ud83d\ude00", "\U0001f600"),
        ("a\x00e\u0301", "a\x00é"),
    ],
)
def test_lone_surrogates_are_replaced_and_pairs_joined(text, expected):
    assert encodable(text) == expected
