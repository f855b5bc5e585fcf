"""`evaluate` module: ScanQA and SQA3D answers under the five protocols of the literature.

    scene_qa = evaluate.load("metrics/scene_qa")
    scene_qa.compute(predictions=["brown"], references=[["brown", "dark brown"]])

`evaluate` copies this file and those it imports by name into its cache, hence the imports of files that others use.
"""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate

from .bootstrap import percentile_interval
from .captions import ptb_tokenize
from .inputs import Questions
from .normalization import clean_answer
from .protocols import PROTOCOLS
from .scoring import score_answers

__all__ = ["PROTOCOLS", "Questions", "SceneQA", "clean_answer", "percentile_interval", "ptb_tokenize", "score_answers"]

_DESCRIPTION = """\
Scores short answers to questions about 3D scenes as five published evaluators do: the official ScanQA script, LEO,
LLaVA-3D, Chat-Scene and Video-3D-LLM. EM@1, EM-R, EM@10, BLEU-1..4, METEOR, ROUGE-L and CIDEr in percent, by question
type, with bootstrap 95 % intervals.
"""
_CITATION = """\
@inproceedings{azuma2022scanqa, title={ScanQA: 3D Question Answering for Spatial Scene Understanding},
  author={Azuma, Daichi and Miyanishi, Taiki and Kurita, Shuhei and Kawanabe, Motoaki}, booktitle={CVPR}, year={2022}}
@inproceedings{ma2023sqa3d, title={SQA3D: Situated Question Answering in 3D Scenes},
  author={Ma, Xiaojian and Yong, Silong and Zheng, Zilong and Li, Qing and Liang, Yitao and Zhu, Song-Chun and
  Huang, Siyuan}, booktitle={ICLR}, year={2023}}
"""


class SceneQA(evaluate.Metric):
    """See `score_answers` for the keyword arguments of `compute` and the result."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=score_answers.__doc__,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.List(datasets.Value("string"))}
            ),
        )

    def _compute(
        self, predictions: Sequence[str], references: Sequence[Sequence[str]], **options: Any
    ) -> dict[str, Any]:
        return score_answers(predictions, references, **options)
