"""ScanQA v1.0: a list of questions about ScanNet scenes, each with all its answers (none in the test files)."""

import re
from pathlib import Path
from typing import Any

from datasets_scripts.capture import Row, Skips, SourceError, checked, key_of, read_json
from datasets_scripts.scannet import room_of
from datasets_scripts.schema import question_type

LABELLED_SPLITS = ("train", "val")
_SPLIT = re.compile(r"(?:^|_)(train|val|test)(?:_|\.|$)")


def split_of(path: Path) -> str:
    """train, val or test from a file's name. Raises SourceError for a name that says none."""
    found = _SPLIT.search(path.name)
    if found is None:
        raise SourceError(
            f"{path}: its name says no split; wanted train, val or test in it, or give it as NAME:val=PATH"
        )
    return found.group(1)


def scanqa_files(path: Path) -> list[Path]:
    """The question files of a folder, or the one file given. Raises SourceError."""
    if path.is_dir():
        found = sorted(path.glob("ScanQA_v1.0_*.json"))
        if not found:
            raise SourceError(f"{path} holds no ScanQA_v1.0_*.json")
        return found
    return [path]


def read_scanqa(path: Path, split: str, skips: Skips) -> list[Row]:
    """The rows of SAMPLE_FEATURES of one file, in its order; damaged records are counted.

    Raises:
        SourceError: a file that is missing or holds no list.
    """
    rows = []
    for index, record in enumerate(checked(read_json(path), list, str(path))):
        try:
            rows.append(_row(record, split, f"{path}[{index}]"))
        except SourceError as error:
            skips.fault("question unreadable", error)
    return rows


def qa_row(
    sample_id: str, scene_id: str, task: str, question: str, answers: list[str], situation: str | None = None
) -> Row:
    """A row of SAMPLE_FEATURES for a question."""
    return {
        "sample_id": sample_id,
        "scene_id": scene_id,
        "task": task,
        "question": question,
        "situation": situation,
        "situation_pose": None,
        "answers": answers,
        "question_type": question_type(question),
        "action": None,
        "targets": [],
        "anchor_frame_id": None,
    }


def text_of(record: Any, key: str, where: str) -> str:
    """A text that is not blank, without outer space. Raises SourceError."""
    text = key_of(record, key, str, where).strip()
    if not text:
        raise SourceError(f"{where}, {key} is blank")
    return text


def _row(record: Any, split: str, where: str) -> Row:
    question_id = text_of(record, "question_id", where)
    if any(character.isspace() for character in question_id):
        raise SourceError(f"{where}, question_id {question_id!r} holds a space")
    scene_id = text_of(record, "scene_id", where)
    room_of(scene_id, f"{where}, scene_id")
    answers = []
    if split in LABELLED_SPLITS:
        listed = key_of(record, "answers", list, where)
        answers = [checked(answer, str, f"{where}, answers") for answer in listed]
        if not answers or not all(answer.strip() for answer in answers):
            raise SourceError(f"{where}, answers is {answers}, wanted at least one and none blank")
    return qa_row(question_id, scene_id, "scanqa", text_of(record, "question", where), answers)
