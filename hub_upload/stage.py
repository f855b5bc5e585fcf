"""Makes a folder that is ready for the Hub: a model, a dataset or a Space. Next: hub_upload.verify, then push.

python -m hub_upload.stage --model outputs/demo --output build/stage --repo-id ORG/NAME --evaluation outputs/eval/demo
python -m hub_upload.stage --type dataset --dataset data/rooms --output build/rooms --repo-id ORG/NAME
python -m hub_upload.stage --type space --model ORG/NAME --output build/space --repo-id ORG/PAGE
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers.utils import logging as library_logging

from .licences import DATA_SOURCES, ENCODERS
from .record import REPO_TYPES, Staged
from .stage_dataset import DatasetSettings, stage_dataset
from .stage_model import ModelSettings, stage_model
from .stage_space import SpaceSettings, stage_space

Settings = ModelSettings | DatasetSettings | SpaceSettings


def parse(argv: list[str] | None = None) -> Settings:
    """Settings of the command line.

    Raises:
        ValueError: a repository name that the Hub would not take.
    """
    parser = argparse.ArgumentParser(prog="python -m hub_upload.stage", description=__doc__.partition("\n")[0])
    parser.add_argument("--type", choices=REPO_TYPES, default="model", help="what is staged (%(default)s)")
    parser.add_argument("--output", type=Path, required=True, help="folder to make")
    parser.add_argument("--repo-id", required=True, metavar="ORG/NAME", help="where it will be published")
    parser.add_argument("--overwrite", action="store_true", help="replace an older staged folder")
    model = parser.add_argument_group("a model")
    model.add_argument(
        "--model", default="outputs/demo", help="checkpoint folder or Hub id; of a Space: Hub id (%(default)s)"
    )
    model.add_argument("--evaluation", type=Path, nargs="+", default=[], help="folders of eval.py, for the card")
    model.add_argument("--encoder", choices=sorted(ENCODERS), help="where its encoder comes from: decides the licence")
    model.add_argument("--encoder-license", type=Path, metavar="FILE", help="the licence that came with the encoder")
    model.add_argument("--text-model", metavar="ORG/NAME", help="where its text model comes from")
    model.add_argument("--trained-on", nargs="+", choices=sorted(DATA_SOURCES), help="sources of its training data")
    model.add_argument("--dtype", default="auto", help="weights are saved in: bfloat16 or float32; auto = as they are")
    model.add_argument("--max-shard-size", default="5GB", help="of one weight file (%(default)s)")
    model.add_argument("--link-code", action="store_true", help="links to the project's modules, to keep it in here")
    data = parser.add_argument_group("a dataset")
    data.add_argument("--dataset", type=Path, default=Path("data/rooms"), help="built dataset folder (%(default)s)")
    data.add_argument("--own-data", metavar="LICENCE", help="licence, such as cc-by-4.0, of captures that are yours")
    options = parser.parse_args(argv)
    try:
        validate_repo_id(options.repo_id)
    except HFValidationError as error:
        raise ValueError(f"--repo-id {options.repo_id} is no name of a repository: {error}") from error
    if options.repo_id.count("/") != 1:
        raise ValueError(f"--repo-id is {options.repo_id}, wanted ORG/NAME")
    if options.type == "dataset":
        return DatasetSettings(options.dataset, options.output, options.repo_id, options.own_data, options.overwrite)
    if options.type == "space":
        return SpaceSettings(options.model, options.output, options.repo_id, options.overwrite)
    return ModelSettings(
        model=options.model,
        output=options.output,
        repo_id=options.repo_id,
        evaluations=tuple(options.evaluation),
        encoder=options.encoder,
        encoder_license=options.encoder_license,
        text_model=options.text_model,
        trained_on=None if options.trained_on is None else tuple(options.trained_on),
        dtype=options.dtype,
        max_shard_size=options.max_shard_size,
        link_code=options.link_code,
        overwrite=options.overwrite,
    )


def main(argv: list[str] | None = None) -> Staged:
    """Stages what the command line asks for."""
    library_logging.set_verbosity_error()
    settings = parse(argv)
    stages = {ModelSettings: stage_model, DatasetSettings: stage_dataset, SpaceSettings: stage_space}
    staged = stages[type(settings)](settings)
    size = sum((settings.output / name).stat().st_size for name in staged.files)
    print(f"{settings.output}: {len(staged.files)} files, {size / 1e6:,.1f} MB, for {staged.repo_id}")
    print(f"next: python -m hub_upload.verify {settings.output}")
    return staged


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
