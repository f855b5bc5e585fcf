"""Questions about one scene in one row: the prefix that they share (system text, visual tokens) is computed once.

`[prefix][q1 a1][q2 a2]…`: every segment attends to the prefix and to itself, and its positions restart behind the
prefix, so that logits, loss and gradients are those of separate rows.
"""

from __future__ import annotations

import torch

PADDING_SEGMENT = -1
IGNORE_INDEX = -100
ROW_KEYS = ("input_ids", "labels", "task_ids", "token_weights")
LENGTH_MULTIPLE = 32
"""Rows are padded to such lengths: few shapes to plan and compile for, masks that attention takes without a copy."""
FILL = {"labels": IGNORE_INDEX, "segment_ids": PADDING_SEGMENT}


def pack_batch(batch: dict[str, torch.Tensor], prefix_end_id: int, pad_token_id: int) -> dict[str, torch.Tensor]:
    """Joins the rows that look at the same scene through the same prefix.

    Args:
        batch: right-padded rows with labels, as the collator makes them.
        prefix_end_id: the token that ends the shared prefix (`<|vision_end|>`).
        pad_token_id: fills input_ids.

    Returns:
        The batch with fewer, longer rows, `segment_ids` and `position_ids`; scene tensors as they were.

    Raises:
        ValueError: for a row without the prefix's end.
    """
    groups: dict[tuple[int, ...], list[tuple[int, int, int]]] = {}  # scene and prefix -> (row, prefix length, length)
    for row, length in enumerate(batch["attention_mask"].sum(1).tolist()):
        ids = batch["input_ids"][row, :length].tolist()
        if prefix_end_id not in ids:
            raise ValueError(f"row {row} shows no images, so it shares no prefix: leave blind batches unpacked")
        prefix = ids.index(prefix_end_id) + 1
        key = (int(batch["scene_index"][row]), *ids[:prefix])
        groups.setdefault(key, []).append((row, prefix, length))
    packed = [_pack_row(batch, members) for members in groups.values()]
    out = {key: value for key, value in batch.items() if key not in (*ROW_KEYS, "attention_mask", "scene_index")}
    out |= pad_rows(packed, pad_token_id)
    out["scene_index"] = torch.tensor([key[0] for key in groups])
    return out


def pad_rows(
    rows: list[dict[str, torch.Tensor]], pad_token_id: int, multiple: int = LENGTH_MULTIPLE
) -> dict[str, torch.Tensor]:
    """Packed rows of any lengths -> tensors [rows, length], padded to a multiple of so many tokens."""
    longest = max(len(row["input_ids"]) for row in rows)
    length = -(-longest // multiple) * multiple
    out = {}
    for key in rows[0]:
        fill = pad_token_id if key == "input_ids" else FILL.get(key, 0)
        out[key] = torch.full((len(rows), length), fill, dtype=rows[0][key].dtype)
        for index, row in enumerate(rows):
            out[key][index, : len(row[key])] = row[key]
    return out


def _pack_row(batch: dict[str, torch.Tensor], members: list[tuple[int, int, int]]) -> dict[str, torch.Tensor]:
    first, prefix, _ = members[0]
    spans = [(first, 0, prefix), *[(row, prefix, length) for row, _, length in members]]
    out = {
        key: torch.cat([batch[key][row, start:end] for row, start, end in spans])
        for key in ("attention_mask", *ROW_KEYS)
        if key in batch
    }
    out["position_ids"] = torch.cat([torch.arange(start, end) for _, start, end in spans])
    out["segment_ids"] = torch.cat(
        [torch.full((end - start,), segment) for segment, (_, start, end) in enumerate(spans)]
    )
    return out
