"""Adds adapters to the weights they were trained on: a checkpoint like any other comes of it.

python -m training.merge --adapter outputs/stage1_3dqa_lora --output outputs/stage1_3dqa
"""

from __future__ import annotations

import argparse
from pathlib import Path

from modeling_vggt_qwen3.convert_vggt_checkpoint import all_or_nothing, refuse_existing

from .adapters import ADAPTER_CONFIG, base_of, is_adapter
from .assembly import load_model


def merge_into(adapter: str, output: Path) -> None:
    """Writes the merged model with its processor, all of it or nothing, in the dtype of the base.

    Raises:
        FileNotFoundError: for a folder without adapters.
        FileExistsError: `output` holds something.
    """
    if not is_adapter(adapter):
        raise FileNotFoundError(f"{adapter} has no {ADAPTER_CONFIG}: it holds no adapters")
    refuse_existing(output)
    model, processor = load_model(adapter, adapter)
    with all_or_nothing(output) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", required=True, help="folder of a run or checkpoint that holds adapters")
    parser.add_argument("--output", required=True, type=Path, help="folder to write; must not exist, or be empty")
    options = parser.parse_args(arguments)
    try:
        merge_into(options.adapter, options.output)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    print(f"{options.output}: {base_of(options.adapter)} with the updates of {options.adapter}")


if __name__ == "__main__":
    main()
