"""BLEU, METEOR, ROUGE-L and CIDEr as sums over samples, by pycocoevalcap 1.2 and its two Java programs.

Every metric is a function of sums over samples: BLEU of lengths and clipped n-gram counts, METEOR of its 23 alignment
counts, ROUGE-L and CIDEr of per-sample scores. So subsets and bootstrap resamples need no second run.
"""

import importlib.util
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

BLEU_COLUMNS = (
    10  # length of the answer, of the closest reference; n-grams in the answer for n = 1..4; those found, 1..4
)
METEOR_COLUMNS = 23
_BLEU_SMALL, _BLEU_TINY = 1e-9, 1e-15
_METEOR_ALPHA, _METEOR_BETA, _METEOR_GAMMA, _METEOR_DELTA = 0.85, 0.2, 0.6, 0.75
_METEOR_STAGE_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])  # exact, stem, synonym, paraphrase


def has_pycocoevalcap() -> bool:
    """Whether the optional package (extra `captions`) is installed."""
    return importlib.util.find_spec("pycocoevalcap") is not None


def has_java() -> bool:
    """Whether a `java` program is on PATH."""
    return shutil.which("java") is not None


def ptb_tokenize(sentences: Sequence[str]) -> list[str]:
    """Tokenises sentences with Stanford's PTBTokenizer and drops punctuation, in one Java run.

    The same program, flags and punctuation list as pycocoevalcap's PTBTokenizer. That class replaces "\\n" alone while
    the Java program also ends a line at form feeds, U+2028 and others, which would shift all later sentences by one:
    here every line break inside a sentence is a space. The tokeniser looks past the end of a line ("no." before a
    digit keeps its period), so the order of sentences is part of the result.

    Raises:
        RuntimeError: Java failed, or its number of lines is not the number of sentences.
    """
    from pycocoevalcap.tokenizer import ptbtokenizer

    folder = Path(ptbtokenizer.__file__).parent
    command = ["java", "-cp", ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR, "edu.stanford.nlp.process.PTBTokenizer"]
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "sentences.txt"
        path.write_text("".join(f"{' '.join(sentence.splitlines())}\n" for sentence in sentences), encoding="utf-8")
        run = subprocess.run([*command, "-preserveLines", "-lowerCase", str(path)], cwd=folder, capture_output=True)
    if run.returncode != 0:
        raise RuntimeError(f"PTBTokenizer (Java) failed: {run.stderr.decode(errors='replace')[-500:]}")
    lines = run.stdout.decode("utf-8").removesuffix("\n").split("\n")
    if len(lines) != len(sentences):
        raise RuntimeError(f"PTBTokenizer (Java) gave {len(lines)} lines for {len(sentences)} sentences")
    dropped = set(ptbtokenizer.PUNCTUATIONS)
    return [" ".join(word for word in line.rstrip().split(" ") if word not in dropped) for line in lines]


def bleu_statistics(answers: Sequence[str], references: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    """[samples, BLEU_COLUMNS]; the reference length is the one closest to the answer's."""
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer

    scorer = BleuScorer(n=4)
    for answer, wanted in zip(answers, references, strict=True):
        scorer += (answer, list(wanted))
    rows = []
    for sample in scorer.ctest:
        length = sample["testlen"]
        closest = min((abs(candidate - length), candidate) for candidate in sample["reflen"])[1]
        rows.append([length, closest, *sample["guess"], *sample["correct"]])
    return np.array(rows, dtype=np.float64)


def bleu_from_sums(sums: NDArray[np.float64], order: int) -> NDArray[np.float64]:
    """BLEU-`order` in 0..1 (Papineni et al., ACL 2002) of summed statistics [..., BLEU_COLUMNS]."""
    guessed, found = sums[..., 2 : 2 + order], sums[..., 6 : 6 + order]
    precision = np.prod((found + _BLEU_TINY) / (guessed + _BLEU_SMALL), axis=-1) ** (1.0 / order)
    ratio = (sums[..., 0] + _BLEU_TINY) / (sums[..., 1] + _BLEU_SMALL)
    return precision * np.exp(np.minimum(0.0, 1.0 - 1.0 / ratio))


def rouge_scores(answers: Sequence[str], references: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    """ROUGE-L of each sample in 0..1, [samples]."""
    from pycocoevalcap.rouge.rouge import Rouge

    rouge = Rouge()
    return np.array([rouge.calc_score([answer], wanted) for answer, wanted in zip(answers, references, strict=True)])


def cider_scores(answers: Sequence[str], references: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    """CIDEr of each sample in 0..10, [samples]; document frequencies come from all references given here."""
    from pycocoevalcap.cider.cider import Cider

    if not any(text.split() for wanted in references for text in wanted):
        return np.zeros(len(answers))
    wanted_by_id = {index: list(wanted) for index, wanted in enumerate(references)}
    answer_by_id = {index: [answer] for index, answer in enumerate(answers)}
    return np.asarray(Cider().compute_score(wanted_by_id, answer_by_id)[1], dtype=np.float64)


class MeteorProcess:
    """The METEOR 1.5 program of pycocoevalcap, kept open; an answer with the same references is aligned once."""

    def __init__(self) -> None:
        from pycocoevalcap.meteor.meteor import Meteor

        self._meteor = Meteor()
        self._known: dict[tuple[str, ...], list[float]] = {}

    def close(self) -> None:
        """Ends the Java process."""
        del self._meteor  # its finaliser does

    def statistics(self, answers: Sequence[str], references: Sequence[Sequence[str]]) -> NDArray[np.float64]:
        """[samples, METEOR_COLUMNS]: the counts of the best reference; the chunk of a perfect answer counts as none.

        Raises:
            RuntimeError: the Java process answered something else.
        """
        rows = np.array([self._align(answer, wanted) for answer, wanted in zip(answers, references, strict=True)])
        is_perfect = (rows[:, 21] == rows[:, 0]) & (rows[:, 22] == rows[:, 1]) & (rows[:, 20] == 1)
        rows[is_perfect, 20] = 0.0
        return rows

    def _align(self, answer: str, references: Sequence[str]) -> list[float]:
        key = tuple(_as_meteor_field(text) for text in (answer, *references))
        if key not in self._known:
            # compute_score gives finished scores only; the counts are what resamples can be made of.
            try:
                line = self._meteor._stat(key[0], list(key[1:]))
            except BrokenPipeError as error:
                raise RuntimeError(
                    "METEOR (Java) ended early; does `java -version` work, with 2 GB to spare?"
                ) from error
            counts = line.split()
            if len(counts) != METEOR_COLUMNS:
                raise RuntimeError(
                    f"METEOR (Java) answered {line!r} to {answer[:80]!r}, wanted {METEOR_COLUMNS} counts"
                )
            self._known[key] = [float(count) for count in counts]
        return self._known[key]


def _as_meteor_field(text: str) -> str:
    """METEOR reads one request a line, fields apart by "|||"."""
    return " ".join(text.replace("|||", "").split())


def meteor_from_sums(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """METEOR in 0..1 of summed statistics [..., METEOR_COLUMNS]; English, parameters tuned to rankings.

    Source: Denkowski and Lavie, "Meteor Universal", WMT 2014, equations 1-6.
    """
    stages = sums[..., 4:20].reshape(*sums.shape[:-1], 4, 4)  # per stage: content answer, reference, function answer, …
    content, function = _METEOR_DELTA, 1.0 - _METEOR_DELTA
    matched = content * stages[..., :2] + function * stages[..., 2:]  # [..., stage, answer | reference]
    matched = np.einsum("...sk,s->...k", matched, _METEOR_STAGE_WEIGHTS)
    lengths = content * (sums[..., :2] - sums[..., 2:4]) + function * sums[..., 2:4]
    share = np.divide(matched, lengths, out=np.zeros_like(matched), where=lengths > 0)
    precision, recall = share[..., 0], share[..., 1]
    weighted = (1.0 - _METEOR_ALPHA) * recall + _METEOR_ALPHA * precision
    mean = np.divide(precision * recall, weighted, out=np.zeros_like(weighted), where=weighted > 0)
    words = (sums[..., 21] + sums[..., 22]) / 2.0
    fragments = np.divide(sums[..., 20], words, out=np.zeros_like(words), where=words > 0)
    return mean * (1.0 - _METEOR_GAMMA * fragments**_METEOR_BETA)
