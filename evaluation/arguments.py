"""The command line of eval.py: four uses, told apart by their first word or by --images."""

from __future__ import annotations

import argparse
from pathlib import Path

from accelerate import PartialState

from datasets_scripts.photos import parse_gravity
from datasets_scripts.schema import SAMPLE_SPLITS
from training.arguments import SceneTrainingArguments
from training.embedded import EMBEDDED_ROOT, embedded_dataset

from .compare import CompareSettings
from .conditions import CONDITIONS, SIGHTED, parse_controls
from .foreign import ScoreSettings
from .predict import Generation
from .question import QuestionSettings
from .scoring import Scoring
from .settings import GALLERY_SIZE, EvalSettings

DEFAULT_MODEL = SceneTrainingArguments.__dataclass_fields__["output_dir"].default
RESULTS = Path("outputs/eval")
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
QUESTION_OPTIONS = ("question", "situation", "cameras", "gravity", "scale", "picture")

Settings = EvalSettings | QuestionSettings | ScoreSettings | CompareSettings


def parse(argv: list[str]) -> Settings:
    """Settings of what the command line asks for.

    Raises:
        ValueError: a value that no use takes; argparse ends the program on unknown options.
    """
    if argv[:1] == ["compare"]:
        return _compare(argv[1:])
    if argv[:1] == ["score"]:
        return _score(argv[1:])
    parser = _main_parser()
    options = parser.parse_args(_keep_signs(argv))
    return _question(options, parser) if options.images else _evaluation(options, parser)


def _keep_signs(argv: list[str]) -> list[str]:
    """Joins --gravity to its value, which may begin with a minus that argparse would take for an option."""
    words = iter(argv)
    return [f"{word}={next(words, '')}" if word == "--gravity" else word for word in words]


def _main_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="eval.py",
        description="Evaluates a model on a built dataset, or, with --images, asks it one question.",
        epilog="Also: `eval.py score --help` (answers made elsewhere), `eval.py compare --help` (two evaluations).",
    )
    parser.add_argument("--model", default=DEFAULT_MODEL, help="checkpoint folder or Hub id (%(default)s)")
    parser.add_argument("--num-views", type=int, default=8, help="views shown of a scene (%(default)s)")
    parser.add_argument("--num-beams", type=int, default=1, help="1 = greedy (%(default)s)")
    parser.add_argument("--max-new-tokens", type=int, help="of an answer; by default enough for the task")
    parser.add_argument(
        "--constrain-actions",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="let action tasks answer with nothing but actions (the default)",
    )
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto")
    parser.add_argument("--attn-implementation", default="sdpa", metavar="NAME", help="sdpa, flash_attention_2, eager")
    _add_data(parser)
    _add_scoring(parser)
    _add_run(parser.add_argument_group("evaluation"))
    _add_question(parser.add_argument_group("one question"))
    return parser


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset", help=f"built dataset folder ({EMBEDDED_ROOT}, made on first use)")
    parser.add_argument("--split", default="val", help=f"{', '.join(SAMPLE_SPLITS)} (%(default)s)")
    parser.add_argument("--task", help="one or several, with commas; by default all that the split holds")
    parser.add_argument("--output", type=Path, help=f"folder of the results (a new one in {RESULTS})")
    parser.add_argument("--gallery", type=int, default=GALLERY_SIZE, help="most examples of a task in the report")


def _add_scoring(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--protocol", help="one or several, with commas, the first for the headline; all by default")
    parser.add_argument("--num-resamples", type=int, default=1000, help="of the bootstrap; 0 = no intervals")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")


def _add_run(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--limit", type=int, help="most samples of a task, spread evenly over the split")
    group.add_argument("--batch-size", type=int, default=16, help="samples answered at once (%(default)s)")
    group.add_argument("--num-workers", type=int, default=0, help="processes that read images (%(default)s)")
    group.add_argument("--overwrite", action="store_true", help="discard predictions made with other settings")
    group.add_argument(
        "--controls", default="", help=f"with commas: {', '.join(c for c in CONDITIONS if c != SIGHTED)}"
    )
    shown = group.add_mutually_exclusive_group()
    for flag, name in (("blind", "blind"), ("shuffle-images", "shuffled_images"), ("single-view", "single_view")):
        text = f"instead: {CONDITIONS[name].description}"
        shown.add_argument(f"--{flag}", dest="condition", action="store_const", const=name, default=SIGHTED, help=text)
    group.add_argument("--hide-geometry", action="store_true", help="show no cameras and no depth")
    group.add_argument("--hide-depth", action="store_true", help="show no depth")


def _add_question(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--images", nargs="+", help="folder of photographs, or the photographs")
    group.add_argument("--question", help="the question, or with --action the instruction")
    group.add_argument("--situation", help="where the asker stands: 'I am standing by the door facing the bed.'")
    group.add_argument("--action", action="store_true", help="ask for a JSON action in metres")
    group.add_argument(
        "--cameras", help="transforms.json, or the folder of pose files; looked for beside the photographs"
    )
    group.add_argument(
        "--gravity", help="where things fall in the frame of the cameras: x,y,z or a file of three numbers"
    )
    group.add_argument("--scale", type=float, help="metres of one unit of the cameras' positions")
    group.add_argument("--picture", type=Path, help="image file to draw photographs, boxes, plan and reply into")


def _evaluation(options: argparse.Namespace, parser: argparse.ArgumentParser) -> EvalSettings:
    misplaced = [name for name in QUESTION_OPTIONS if getattr(options, name)]
    if misplaced or options.action:
        parser.error(f"--{(misplaced or ['action'])[0]} goes with --images")
    dataset = _dataset(options)
    return EvalSettings(
        model=options.model,
        dataset=dataset,
        split=options.split,
        output=options.output or _default_output(options, dataset),
        tasks=_names(options.task),
        limit=options.limit,
        num_views=options.num_views,
        condition=options.condition,
        controls=tuple(parse_controls(options.controls)),
        hide_geometry=options.hide_geometry,
        hide_depth=options.hide_depth,
        dtype=options.dtype,
        attn_implementation=options.attn_implementation,
        overwrite=options.overwrite,
        gallery=options.gallery,
        generation=Generation(
            batch_size=options.batch_size,
            num_beams=options.num_beams,
            constrain_actions=options.constrain_actions,
            max_new_tokens=options.max_new_tokens,
            num_workers=options.num_workers,
        ),
        scoring=_scoring(options),
    )


def _dataset(options: argparse.Namespace) -> str:
    with PartialState().main_process_first():
        return options.dataset or embedded_dataset()


def _default_output(options: argparse.Namespace, dataset: str) -> Path:
    words = [Path(options.model).name, Path(dataset).name, options.split]
    words += [options.condition] if options.condition != SIGHTED else []
    words += [flag for flag in ("hide_geometry", "hide_depth") if getattr(options, flag)]
    return RESULTS / "-".join(word.replace("_", "-") for word in words)


def _question(options: argparse.Namespace, parser: argparse.ArgumentParser) -> QuestionSettings:
    if not options.question:
        parser.error("--images needs --question")
    if options.dataset or options.controls or options.condition != SIGHTED:
        parser.error("--images asks one question; --dataset, --controls and the like belong to an evaluation")
    if options.picture and options.picture.suffix.lower() not in PICTURES:
        parser.error(f"--picture {options.picture}: wanted a file that ends in one of {', '.join(PICTURES)}")
    return QuestionSettings(
        model=options.model,
        images=options.images[0] if len(options.images) == 1 else tuple(options.images),
        question=options.question,
        situation=options.situation,
        action=options.action,
        cameras=options.cameras,
        picture=options.picture,
        gravity=None if options.gravity is None else tuple(parse_gravity(options.gravity).tolist()),
        scale=options.scale,
        num_views=options.num_views,
        dtype=options.dtype,
        attn_implementation=options.attn_implementation,
        generation=Generation(
            num_beams=options.num_beams,
            constrain_actions=options.constrain_actions,
            max_new_tokens=options.max_new_tokens,
        ),
    )


def _score(argv: list[str]) -> ScoreSettings:
    parser = argparse.ArgumentParser(prog="eval.py score", description="Scores answers made elsewhere.")
    parser.add_argument(
        "--predictions",
        type=Path,
        required=True,
        help="JSON (Lines): objects with sample_id or question_id, and prediction, answer, action or answer_top10",
    )
    parser.add_argument("--num-views", type=int, default=8, help="views of a scene in the report (%(default)s)")
    _add_data(parser)
    _add_scoring(parser)
    options = parser.parse_args(argv)
    return ScoreSettings(
        predictions=options.predictions,
        dataset=_dataset(options),
        split=options.split,
        tasks=_names(options.task),
        output=options.output or RESULTS / f"score-{options.predictions.stem}",
        num_views=options.num_views,
        gallery=options.gallery,
        scoring=_scoring(options),
    )


def _compare(argv: list[str]) -> CompareSettings:
    parser = argparse.ArgumentParser(
        prog="eval.py compare", description="Compares two evaluations of the same samples: what changed, is it chance?"
    )
    parser.add_argument("first", type=Path, help="folder of an evaluation, or its predictions.jsonl")
    parser.add_argument("second", type=Path, help="the other one")
    parser.add_argument("--output", type=Path, help="HTML file (compare-<first>-<second>.html in the second's folder)")
    _add_scoring(parser)
    options = parser.parse_args(argv)
    return CompareSettings(options.first, options.second, options.output, _scoring(options))


def _scoring(options: argparse.Namespace) -> Scoring:
    return Scoring(_names(options.protocol), options.num_resamples, options.seed)


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(name.strip() for name in text.split(",") if name.strip())
