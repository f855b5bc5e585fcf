"""The published ways of scoring ScanQA and SQA3D, as data: what is cleaned, what is a match, what is tokenised.

| protocol   | ScanQA                                                  | SQA3D                   |
|------------|---------------------------------------------------------|-------------------------|
| official   | nothing cleaned; PTB tokeniser; EM on the raw strings   | none                    |
| leo        | both cleaned; no tokeniser; EM and EM-R                 | the same                |
| llava3d    | both cleaned; PTB tokeniser; EM and EM-R                | both cleaned; EM, EM-R  |
| chat_scene | prediction cleaned, references raw; PTB; EM and EM-R    | both cleaned; EM, EM-R  |
| video3d    | nothing cleaned, final "." off; no tokeniser; EM raw    | both cleaned; EM        |
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .normalization import clean_answer, without_whitespace

Cleaner = Callable[[str], str]
Match = tuple[bool, bool | None]  # exact; refined, or None where the protocol has no refined match


@dataclass(frozen=True)
class CaptionRule:
    """What the n-gram metrics see: both sides cleaned as for the match, changed by these, then tokenised or not."""

    uses_ptb: bool
    prediction: Cleaner
    reference: Cleaner


@dataclass(frozen=True)
class Protocol:
    """One published evaluator. `difference`: why its numbers differ; `captions`: None where it has no n-gram metric."""

    name: str
    difference: str
    clean_prediction: Cleaner
    clean_reference: Cleaner
    match: Callable[[str, Sequence[str]], Match]
    captions: CaptionRule | None


def _raw(text: str) -> str:
    return text


def _clean_without_final_period(text: str) -> str:
    has_period = len(text) > 1 and text.endswith(".")
    return clean_answer(text[:-1] if has_period else text)


def _without_final_periods(text: str) -> str:
    return text.rstrip(".")


def _on_one_line(text: str) -> str:
    return text.replace("\n", " ").strip()


def _contains(prediction: str, reference: str) -> bool:
    prediction, reference = without_whitespace(prediction), without_whitespace(reference)
    return prediction in reference or reference in prediction


def match_exactly(prediction: str, references: Sequence[str]) -> Match:
    """Exact match with any reference; no refined match."""
    return prediction in references, None


def match_in_order(prediction: str, references: Sequence[str]) -> Match:
    """LEO: the first reference that equals, contains or is contained decides, so a later exact one may go unseen."""
    for reference in references:
        if prediction == reference:
            return True, True
        if _contains(prediction, reference):
            return False, True
    return False, False


def match_any(prediction: str, references: Sequence[str]) -> Match:
    """LLaVA-3D: exact with any reference, else refined with any. An empty prediction is part of every reference."""
    if prediction in references:
        return True, True
    return False, any(_contains(prediction, reference) for reference in references)


def match_any_nonempty(prediction: str, references: Sequence[str]) -> Match:
    """Chat-Scene: as LLaVA-3D, but an empty prediction matches nothing."""
    return match_any(prediction, references) if prediction else (False, False)


_OFFICIAL = Protocol(
    name="official",
    difference="raw strings must be equal, so case, articles and '2' against 'two' cost a match; PTB drops punctuation",
    clean_prediction=_raw,
    clean_reference=_raw,
    match=match_exactly,
    captions=CaptionRule(uses_ptb=True, prediction=_raw, reference=_raw),
)
_LEO = Protocol(
    name="leo",
    difference="both sides cleaned (articles and punctuation off, digits as words), n-grams of words as they stand; "
    "references are tried in order and the first substring hit hides a later exact match",
    clean_prediction=clean_answer,
    clean_reference=clean_answer,
    match=match_in_order,
    captions=CaptionRule(uses_ptb=False, prediction=_raw, reference=_raw),
)
_LLAVA3D = Protocol(
    name="llava3d",
    difference="both sides cleaned as in leo, then PTB; exact match is sought in all references before substrings",
    clean_prediction=clean_answer,
    clean_reference=clean_answer,
    match=match_any,
    captions=CaptionRule(uses_ptb=True, prediction=_raw, reference=_on_one_line),
)
_CHAT_SCENE = Protocol(
    name="chat_scene",
    difference="only the prediction is cleaned, so references with articles or digits are out of reach; "
    "an empty prediction matches nothing",
    clean_prediction=_clean_without_final_period,
    clean_reference=_raw,
    match=match_any_nonempty,
    captions=CaptionRule(uses_ptb=True, prediction=_raw, reference=_on_one_line),
)
_VIDEO3D = Protocol(
    name="video3d",
    difference="exact match of raw strings, final '.' included; n-grams of raw words, so case and commas count",
    clean_prediction=_raw,
    clean_reference=_raw,
    match=match_exactly,
    captions=CaptionRule(uses_ptb=False, prediction=_without_final_periods, reference=_raw),
)


def _sqa3d(protocol: Protocol, difference: str, clean_prediction: Cleaner, captions: CaptionRule | None) -> Protocol:
    return Protocol(protocol.name, difference, clean_prediction, clean_answer, protocol.match, captions)


_SCANQA = {protocol.name: protocol for protocol in (_OFFICIAL, _LEO, _LLAVA3D, _CHAT_SCENE, _VIDEO3D)}
_SQA3D = {
    protocol.name: protocol
    for protocol in (
        _LEO,
        _sqa3d(_LLAVA3D, "both sides cleaned; EM and EM-R only", clean_answer, None),
        _sqa3d(
            _CHAT_SCENE, "both sides cleaned; an empty prediction matches nothing", _clean_without_final_period, None
        ),
        _sqa3d(_VIDEO3D, "both sides cleaned; EM only", clean_answer, None),
    )
}

PROTOCOLS: dict[str, dict[str, Protocol]] = {"scanqa": _SCANQA, "sqa3d": _SQA3D, "rooms_qa": _SCANQA}


def match_as_predecessor(prediction: str, references: Sequence[str]) -> tuple[bool, bool]:
    """Exact match and partial match (either contains the other) of lower-cased, stripped strings.

    The partial match includes the exact one. An empty prediction is a partial match, and so is every word that a long
    answer repeats: read the two figures only beside the predecessor's own.
    """
    text = prediction.lower().strip()
    wanted = [reference.lower().strip() for reference in references]
    return text in wanted, any(text in reference or reference in text for reference in wanted)
