"""How published evaluators clean an answer before they compare it."""

import re

_TYPOS = (
    ("letf", "left"),
    ("let", "left"),
    ("tehre", "there"),
    ("rigth", "right"),
    ("rght", "right"),
    ("behine", "behind"),
    ("tv", "TV"),
    ("chai", "chair"),
    ("wasing", "washing"),
    ("waslked", "walked"),
    ("oclock", "o'clock"),
    ("o'[ ]+clock", "o'clock"),
)
_NUMBERS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)

_RULES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"[ ]+$", ""),
        (r"^[ ]+", ""),
        (r" {2,}", " "),
        (r"[^a-zA-Z0-9,'\s\-:]+", ""),
        *((rf"\b{typo}\b", word) for typo, word in _TYPOS),
        *((rf"\b{digits}\b", word) for digits, word in enumerate(_NUMBERS)),
        (r"\bnone\b", "zero"),
        (r"\b23\b", "twenty-three"),
        (r"\b([a-zA-Z]+)[0-9]\b", r"\1"),
        *((rf"\b{article}\b ([a-zA-Z]+)", r"\1") for article in ("a", "an", "the")),
        (r"\bbackwards\b", "backward"),
    )
)


def clean_answer(text: str) -> str:
    """Cleans an answer as SQA3D's authors did for their answer vocabulary and LEO, LLaVA-3D and Chat-Scene do since.

    The order of the rules is part of it: spaces are trimmed before punctuation goes, so "brown ." keeps a space at its
    end; letters outside a-z are deleted, not transliterated ("façade" becomes "faade"); "tv" becomes "TV". The
    published rules that earlier ones leave nothing to do (spaces after a period, "ç", "’") are left out.

    Source: clean_answer of LEO (Huang et al., ICML 2024, data_utils.py), described, not copied.
    """
    text = text.lower()
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text


def without_whitespace(text: str) -> str:
    """The text without any whitespace: what the refined exact match (EM-R) looks for substrings in."""
    return "".join(text.split())
