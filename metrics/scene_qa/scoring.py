"""Scores answers under every protocol; plain Python and numpy, usable without `evaluate`."""

import difflib
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bootstrap import CONFIDENCE, bootstrap_sums, percentile_interval
from .captions import (
    MeteorProcess,
    bleu_from_sums,
    bleu_statistics,
    cider_scores,
    has_java,
    has_pycocoevalcap,
    meteor_from_sums,
    ptb_tokenize,
    rouge_scores,
)
from .inputs import Questions
from .protocols import PROTOCOLS, Protocol, match_as_predecessor

Sums = NDArray[np.float64]  # [..., columns of one statistic]
Statistics = dict[str, NDArray[np.float64]]  # name -> [samples, columns] or sums of it


def _mean(sums: Sums, count: float) -> Sums:
    return sums[..., 0] / count


METRICS: dict[str, tuple[str, Callable[[Sums, float], Sums]]] = {  # metric -> the statistic it reads, and how
    "EM@1": ("exact", _mean),
    "EM-R": ("refined", _mean),
    "EM@10": ("exact_in_ten", _mean),
    **{f"BLEU-{order}": ("bleu", lambda sums, _, order=order: bleu_from_sums(sums, order)) for order in (1, 2, 3, 4)},
    "METEOR": ("meteor", lambda sums, _: meteor_from_sums(sums)),
    "ROUGE-L": ("rouge", _mean),
    "CIDEr": ("cider", _mean),
    "exact_match": ("predecessor_exact", _mean),
    "partial_match": ("predecessor_partial", _mean),
}


def select_protocols(task: str, names: Sequence[str] | None) -> list[Protocol]:
    """The protocols of a task (scanqa, sqa3d, rooms_qa); all of them for None.

    Raises:
        ValueError: an unknown task or protocol, or one that does not define the task.
    """
    if task not in PROTOCOLS:
        raise ValueError(f"task is {task!r}, wanted one of {', '.join(PROTOCOLS)}")
    known = PROTOCOLS[task]
    for name in names or ():
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise ValueError(f"protocol {name!r} is not defined for {task}, wanted among {', '.join(known)}{hint}")
    return [known[name] for name in (known if names is None else dict.fromkeys(names))]


def score_answers(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    task: str = "scanqa",
    protocols: Sequence[str] | None = None,
    question_types: Sequence[str] | None = None,
    candidates: Sequence[Sequence[str]] | None = None,
    ids: Sequence[str] | None = None,
    captions: bool = True,
    per_sample: bool = False,
    seed: int = 0,
    num_resamples: int = 1000,
) -> dict[str, Any]:
    """Scores one answer a question against its references under several protocols.

    Args:
        predictions: one answer a question; may be empty strings.
        references: the accepted answers of each question, repetitions kept (CIDEr averages over them).
        task: scanqa, sqa3d or rooms_qa (scored as scanqa): decides what each protocol does.
        protocols: names among official, leo, llava3d, chat_scene, video3d; None = all that define the task.
        question_types: a type of each question; adds `by_type`.
        candidates: ten answers of each question, the prediction first; adds EM@10.
        ids: identifiers, checked to be unique.
        captions: whether to compute BLEU, METEOR, ROUGE-L and CIDEr.
        per_sample: adds the metrics of each sample (BLEU and METEOR of that sample alone).
        seed: of the bootstrap.
        num_resamples: of the bootstrap; 0 = no intervals.

    Returns:
        {count, task, protocols: {name: {difference, all: Row, by_type: {type: Row}, per_sample: {metric: [..]}}},
        predecessor: as a protocol, gaps: [what could not be computed, and why], intervals: how they were made}, where
        Row = {count, scores: {metric: value}, intervals: {metric: [low, high]}}. All values are in percent (CIDEr,
        too: its maximum is 1000).

    Raises:
        ValueError: naming every fault of the inputs.
        RuntimeError: Java is there and failed.
    """
    selected = select_protocols(task, protocols)
    questions = Questions(*map(_as_list, (predictions, references, question_types, candidates, ids)))
    gaps = _gaps(selected) if captions else []
    report = _Reporter(questions.question_types, len(questions), per_sample, seed, num_resamples)
    result: dict[str, Any] = {"count": len(questions), "task": task, "protocols": {}}
    with ExitStack() as stack:
        captioned = {protocol.name for protocol in selected if captions and _can_caption(protocol)}
        meteor = stack.enter_context(closing(MeteorProcess())) if captioned and has_java() else None
        for protocol in selected:
            statistics = _match_statistics(questions, protocol)
            if protocol.name in captioned:
                statistics |= _caption_statistics(questions, protocol, meteor)
            result["protocols"][protocol.name] = {"difference": protocol.difference, **report.rows(statistics)}
    result["predecessor"] = report.rows(_predecessor_statistics(questions))
    result["gaps"] = gaps
    result["intervals"] = _interval_note(seed, num_resamples)
    return result


def _as_list(values: Sequence[Any] | None) -> list[Any] | None:
    return None if values is None else list(values)


def _column(values: Iterable[float]) -> NDArray[np.float64]:
    return np.array(list(values), dtype=np.float64)[:, None]


def _match_statistics(questions: Questions, protocol: Protocol) -> Statistics:
    wanted = [[protocol.clean_reference(text) for text in texts] for texts in questions.references]

    def matches(answers: Sequence[str], row: int) -> list[tuple[bool, bool | None]]:
        return [protocol.match(protocol.clean_prediction(answer), wanted[row]) for answer in answers]

    first = [matches([answer], row)[0] for row, answer in enumerate(questions.predictions)]
    statistics = {"exact": _column(exact for exact, _ in first)}
    if first[0][1] is not None:
        statistics["refined"] = _column(refined for _, refined in first)
    if questions.candidates is not None:
        hits = (any(exact for exact, _ in matches(answers, row)) for row, answers in enumerate(questions.candidates))
        statistics["exact_in_ten"] = _column(hits)
    return statistics


def _predecessor_statistics(questions: Questions) -> Statistics:
    found = [match_as_predecessor(*pair) for pair in zip(questions.predictions, questions.references)]
    return {
        "predecessor_exact": _column(exact for exact, _ in found),
        "predecessor_partial": _column(partial for _, partial in found),
    }


def _caption_statistics(questions: Questions, protocol: Protocol, meteor: MeteorProcess | None) -> Statistics:
    rule = protocol.captions
    answers = [rule.prediction(protocol.clean_prediction(text)) for text in questions.predictions]
    wanted = [[rule.reference(protocol.clean_reference(text)) for text in texts] for texts in questions.references]
    if rule.uses_ptb:
        tokenized = iter(ptb_tokenize([text for texts in wanted for text in texts]))
        wanted = [[next(tokenized) for _ in texts] for texts in wanted]
        answers = ptb_tokenize(answers)
    statistics = {
        "bleu": bleu_statistics(answers, wanted),
        "rouge": rouge_scores(answers, wanted)[:, None],
        "cider": cider_scores(answers, wanted)[:, None],
    }
    if meteor is not None:
        statistics["meteor"] = meteor.statistics(answers, wanted)
    return statistics


def _can_caption(protocol: Protocol) -> bool:
    has_rule = protocol.captions is not None
    return has_rule and has_pycocoevalcap() and (has_java() or not protocol.captions.uses_ptb)


def _gaps(protocols: Sequence[Protocol]) -> list[str]:
    with_captions = [protocol for protocol in protocols if protocol.captions is not None]
    if not with_captions:
        return []
    if not has_pycocoevalcap():
        names = ", ".join(protocol.name for protocol in with_captions)
        return [f"BLEU, METEOR, ROUGE-L, CIDEr of {names}: pycocoevalcap is missing; pip install 'pycocoevalcap>=1.2'"]
    if has_java():
        return []
    need_ptb = [protocol.name for protocol in with_captions if protocol.captions.uses_ptb]
    missing = [f"METEOR of {', '.join(protocol.name for protocol in with_captions)}: no `java` on PATH"]
    if need_ptb:
        missing.append(f"BLEU, ROUGE-L, CIDEr of {', '.join(need_ptb)}: PTBTokenizer needs `java` on PATH")
    return [f"{gap}; install a Java runtime (8 or later)" for gap in missing]


def _interval_note(seed: int, num_resamples: int) -> dict[str, Any]:
    return {
        "method": "percentile bootstrap over questions: BLEU and METEOR of resampled sufficient statistics, the others "
        "as means of per-question scores; CIDEr's document frequencies stay those of all references, also by type",
        "confidence": CONFIDENCE,
        "num_resamples": num_resamples,
        "seed": seed,
    }


@dataclass(frozen=True)
class _Reporter:
    """Turns statistics of all samples into rows: all of them, each question type, each sample."""

    question_types: list[str] | None
    num_samples: int
    per_sample: bool
    seed: int
    num_resamples: int

    def rows(self, statistics: Statistics) -> dict[str, Any]:
        rows: dict[str, Any] = {"all": self._row(statistics, np.arange(self.num_samples))}
        if self.question_types is not None:
            types = np.array(self.question_types, dtype=object)
            names = sorted(set(self.question_types))
            rows["by_type"] = {name: self._row(statistics, np.flatnonzero(types == name)) for name in names}
        if self.per_sample:
            each = _metrics_of_sums(statistics, 1.0)
            rows["per_sample"] = {metric: np.round(values, 6).tolist() for metric, values in each.items()}
        return rows

    def _row(self, statistics: Statistics, members: NDArray[np.intp]) -> dict[str, Any]:
        chosen = {name: values[members] for name, values in statistics.items()}
        sums = {name: values.sum(axis=0) for name, values in chosen.items()}
        scores = {metric: float(value) for metric, value in _metrics_of_sums(sums, len(members)).items()}
        row: dict[str, Any] = {"count": len(members), "scores": scores}
        if self.num_resamples > 0:
            draws = bootstrap_sums(np.concatenate(list(chosen.values()), axis=1), self.num_resamples, self.seed)
            ends = np.cumsum([values.shape[1] for values in chosen.values()])[:-1]
            resampled = dict(zip(chosen, np.split(draws, ends, axis=1)))
            metrics = _metrics_of_sums(resampled, len(members))
            row["intervals"] = {metric: list(percentile_interval(values)) for metric, values in metrics.items()}
        return row


def _metrics_of_sums(sums: Statistics, count: float) -> dict[str, NDArray[np.float64]]:
    """Every metric whose statistic is there, in percent; leading axes of the sums are kept."""
    return {
        metric: 100.0 * compute(sums[statistic], count)
        for metric, (statistic, compute) in METRICS.items()
        if statistic in sums
    }
