"""The questions to score, checked before anything is computed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

NUM_CANDIDATES = 10


@dataclass(frozen=True)
class Questions:
    """One row a question in every list. `candidates` holds ten answers a question, the prediction first."""

    predictions: list[str]
    references: list[list[str]]
    question_types: list[str] | None = None
    candidates: list[list[str]] | None = None
    ids: list[str] | None = None

    def __post_init__(self) -> None:
        faults = list(self._length_faults())
        if not faults:
            faults = [*self._text_faults(), *self._candidate_faults(), *self._id_faults()]
        if faults:
            raise ValueError("these answers cannot be scored: " + "; ".join(faults))

    def __len__(self) -> int:
        return len(self.predictions)

    def _length_faults(self) -> Iterable[str]:
        if not self.predictions:
            yield "predictions is empty, wanted at least one"
        for name in ("references", "question_types", "candidates", "ids"):
            rows = getattr(self, name)
            if rows is not None and len(rows) != len(self.predictions):
                yield f"{name} has {len(rows)} rows and predictions {len(self.predictions)}, wanted equally many"

    def _text_faults(self) -> Iterable[str]:
        is_good = {
            "predictions": (lambda text: isinstance(text, str), "a string (an answer that is missing is no answer)"),
            "references": (_is_list_of_text, "a non-empty list of non-blank strings"),
            "question_types": (lambda text: isinstance(text, str), "a string"),
        }
        for name, (check, wanted) in is_good.items():
            rows = getattr(self, name) or []
            bad = [index for index, row in enumerate(rows) if not check(row)]
            if bad:
                yield f"{name}[{bad[0]}] is {rows[bad[0]]!r:.80} ({len(bad)} such rows), wanted {wanted}"

    def _candidate_faults(self) -> Iterable[str]:
        rows = zip(self.candidates or [], self.predictions)
        bad = [i for i, (ten, first) in enumerate(rows) if len(ten) != NUM_CANDIDATES or ten[0] != first]
        if bad:
            yield (
                f"candidates[{bad[0]}] is {self.candidates[bad[0]]!r:.80} ({len(bad)} such rows), wanted "
                f"{NUM_CANDIDATES} answers, the first of them the prediction {self.predictions[bad[0]]!r:.80}"
            )

    def _id_faults(self) -> Iterable[str]:
        counts: dict[Any, int] = {}
        for name in self.ids or []:
            counts[name] = counts.get(name, 0) + 1
        repeated = [name for name, count in counts.items() if count > 1]
        if repeated:
            yield f"ids repeats {repeated[0]!r} ({len(repeated)} such ids), wanted one row for each"


def _is_list_of_text(row: Any) -> bool:
    is_list = isinstance(row, Sequence) and not isinstance(row, str) and len(row) > 0
    return is_list and all(isinstance(text, str) and text.strip() for text in row)
