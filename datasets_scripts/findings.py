"""What an audit finds: counted by check, with examples, as a table and as JSON."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

EXAMPLES_KEPT = 5
MARKS = {"error": "ERROR", "warning": "warning", "note": "note"}


@dataclass
class Finding:
    """One check that found something. Errors make training wrong, warnings make it worse, notes are worth knowing."""

    severity: str
    meaning: str
    count: int = 0
    examples: list[str] = field(default_factory=list)


class Findings:
    """Findings by the name of their check, in the order in which they first appeared, and figures of what was read."""

    def __init__(self) -> None:
        self.found: dict[str, Finding] = {}
        self.figures: dict[str, Any] = {}

    def add(self, severity: str, check: str, meaning: str, example: str, count: int = 1) -> None:
        """Counts `count` cases of a check; a count of 0 adds nothing."""
        if count:
            finding = self.found.setdefault(check, Finding(severity, meaning))
            finding.count += count
            if len(finding.examples) < EXAMPLES_KEPT:
                finding.examples.append(example)

    def error(self, check: str, meaning: str, example: str, count: int = 1) -> None:
        self.add("error", check, meaning, example, count)

    def warning(self, check: str, meaning: str, example: str, count: int = 1) -> None:
        self.add("warning", check, meaning, example, count)

    def note(self, check: str, meaning: str, example: str, count: int = 1) -> None:
        self.add("note", check, meaning, example, count)

    @property
    def has_errors(self) -> bool:
        return any(finding.severity == "error" for finding in self.found.values())

    def as_json(self) -> dict[str, Any]:
        return {
            "has_errors": self.has_errors,
            "figures": self.figures,
            "findings": {check: vars(finding) for check, finding in self.found.items()},
        }

    def table(self) -> str:
        """The findings, errors first, with one example each, under the figures."""
        lines = [f"{name}: {_shown(value)}" for name, value in self.figures.items()]
        order = {severity: place for place, severity in enumerate(MARKS)}
        rows = sorted(self.found.items(), key=lambda item: order[item[1].severity])
        width = max((len(check) for check, _ in rows), default=0)
        lines += [""] if rows else ["nothing found"]
        for check, finding in rows:
            lines.append(f"{MARKS[finding.severity]:8}{finding.count:8}  {check:{width}}  {finding.meaning}")
            lines.append(f"{'':18}{'':{width}}  e.g. {finding.examples[0]}")
        return "\n".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(count)}" for key, count in Counter(value).most_common(20))
    return f"{value:,}" if isinstance(value, int) else str(value)
