"""Evaluates a model, compares two evaluations, or asks one question.

python eval.py --model outputs/demo --dataset data/rooms --split val --controls blind
accelerate launch eval.py --model outputs/demo --dataset data/rooms    several processes, the same files
python eval.py --model outputs/demo --images photos/ --question "What is next to the sofa?" --picture reply.png
python eval.py score --predictions answers.jsonl --dataset data/rooms --split test
python eval.py compare outputs/eval/a outputs/eval/b
"""

from __future__ import annotations

import sys
from typing import Any

from accelerate import PartialState
from transformers.utils import logging as library_logging

from evaluation.arguments import parse
from evaluation.compare import CompareSettings, compare
from evaluation.foreign import ScoreSettings
from evaluation.question import QuestionSettings, ask, draw_reply, print_reply
from evaluation.runs import run, score
from training.launch import end_process_group


def main(argv: list[str] | None = None) -> Any:
    """Does what the command line asks for and returns its result."""
    library_logging.set_verbosity_error()
    settings = parse(sys.argv[1:] if argv is None else argv)
    if isinstance(settings, CompareSettings):
        return compare(settings)
    if isinstance(settings, ScoreSettings):
        return score(settings)
    if isinstance(settings, QuestionSettings):
        reply = ask(settings)
        print_reply(reply, settings)
        if settings.picture is not None and PartialState().is_main_process:
            settings.picture.parent.mkdir(parents=True, exist_ok=True)
            draw_reply(reply, settings).save(settings.picture)
        return reply
    return run(settings)


if __name__ == "__main__":
    try:
        main()
        end_process_group()
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
