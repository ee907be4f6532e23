"""Texts of the world: one normal form and one way to find words, for BM25, splits and checks."""

import re
import sys
import unicodedata
from functools import cache
from itertools import pairwise
from typing import Final

# Scripts written without spaces (or, as Korean, with words of many forms), as Lucene's CJKAnalyzer
# takes them, and Thai, Lao, Myanmar and Khmer: ranges of a regular expression.
SPACELESS: Final = (
    "\u0e00-\u0eff\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f\u1780-\u17ff\u1100-\u11ff\uac00-\ud7af"
    "\u3005-\u3007\u3040-\u30ff\u3100-\u312f\u31f0-\u31ff\uff66-\uff9f"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
)
JOINERS: Final = "\u200c\u200d"  # stand inside words of Persian and of Indian scripts
# Marks of a sentence behind a word, and quotation marks: two texts that differ in these are one.
SENTENCE: Final = re.compile("(?<=\\w)[.,;:!?\u2026]+(?=\\s|$)|[\"'`\u2018-\u201f\u00ab\u00bb]")


def normal(text: str) -> str:
    """Unicode's composed form (NFC): an accented letter is one character, however it was typed."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def encodable(text: str) -> str:
    """`text` in its `normal` form; lone surrogates replaced by U+FFFD, and pairs of them joined."""
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return normal(text)


def words(text: str) -> list[str]:
    """The words in lower case; of a script without spaces, pairs of neighbouring letters."""
    lower = normal(text).lower()
    if lower.isascii():
        return re.findall(r"\w+", lower)
    word, run, letter = _patterns()
    found = word.findall(lower)
    if not re.search(f"[{SPACELESS}]", lower):
        return found
    parts: list[str] = []
    for spaceless, other in (part for one in found for part in run.findall(one)):
        letters = letter.findall(spaceless)
        pairs = [first + second for first, second in pairwise(letters)]
        parts += [other] if other else pairs or letters
    return parts


def normalised(text: str) -> str:
    """`words` with single spaces between them: without punctuation."""
    return " ".join(words(text))


def comparable(text: str) -> str:
    """What two texts have in common that ask for the same thing."""
    return " ".join(SENTENCE.sub(" ", normal(text).lower()).split())


@cache
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
    """A word, its runs without spaces and the rest, and a letter with its marks."""
    marks = JOINERS + "".join(
        chr(code)
        for code in range(0x300, sys.maxunicode + 1)
        if unicodedata.category(chr(code))[0] == "M"
    )
    return (
        re.compile(rf"\w[\w{marks}]*"),
        re.compile(rf"([{SPACELESS}][{SPACELESS}{marks}]*)|([^{SPACELESS}]+)"),
        re.compile(rf".[{marks}]*"),
    )
