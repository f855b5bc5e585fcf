"""The rows of the table in docs/rooms.md: the small model as its recipes make it, and with one thing changed each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from . import predecessor

Fields = dict[str, Any]
GEOMETRY = ("no_geometry", "no_depth")
EVERYTHING = (
    "blind",
    *GEOMETRY,
    "shuffled_images",
    "single_view",
    "two_views",
    "four_views",
    "shuffled_views",
)


def _as_it_is(fields: Fields) -> None:
    pass


def _geometry(tokens: bool, rays: bool) -> Callable[[Fields], None]:
    """Which inputs a model without patch points keeps."""

    def edit(fields: Fields) -> None:
        fields["use_geometry_tokens"] = tokens
        fields["perceiver_config"] |= {"use_ray_embedding": rays, "use_point_embedding": False}

    return edit


def _latents(count: int) -> Callable[[Fields], None]:
    return lambda fields: fields["perceiver_config"].update(num_latents=count)


def _learned_latents(fields: Fields) -> None:
    fields["perceiver_config"]["latent_start"] = "learned"


def _last_layer(fields: Fields) -> None:
    fields["perceiver_config"]["feature_layers"] = [fields["vision_config"]["num_hidden_layers"] - 1]


def _without_patch_embedding(fields: Fields) -> None:
    perceiver = fields["perceiver_config"]
    perceiver["feature_layers"] = [layer for layer in perceiver["feature_layers"] if layer >= 0]


@dataclass(frozen=True)
class TableRow:
    """One way of making the model.

    Attributes:
        name: in the command line and the JSON.
        title: in the table.
        edit: changes the model's JSON in place. Stage 0 always trains the encoder of the JSON as it is.
        settings: of stages 1 and 2, in place of those of the recipes.
        controls: conditions of the evaluation beside the whole input.
        uses_stage_0: whether the encoder is trained; else it is random, and frozen all the same.
        is_predecessor: whether the programs run through `benchmarks.predecessor`.
    """

    name: str
    title: str
    edit: Callable[[Fields], None] = _as_it_is
    settings: Fields = field(default_factory=dict)
    controls: tuple[str, ...] = ("blind", *GEOMETRY)
    uses_stage_0: bool = True
    is_predecessor: bool = False


_NO_LABELS = {"latent_labels": 0.0, "latent_labels_until": 1.0, "geometry_consistency": 0.0}
ROWS = {
    row.name: row
    for row in (
        TableRow("main", "the recipes (images, geometry tokens, rays, points; 64 latents)", controls=EVERYTHING),
        TableRow("images_only", "images alone", _geometry(tokens=False, rays=False), controls=("blind",)),
        TableRow("geometry_tokens", "images and geometry tokens", _geometry(tokens=True, rays=False)),
        TableRow("rays", "images, geometry tokens and rays", _geometry(tokens=True, rays=True)),
        TableRow("last_layer", "features of the last layer alone", _last_layer),
        TableRow("several_layers", "several layers without the patch embedding", _without_patch_embedding),
        TableRow("latents_32", "32 latents", _latents(32)),
        TableRow("latents_128", "128 latents", _latents(128)),
        TableRow("no_dense_supervision", "nothing asks the latents: answers alone", settings=_NO_LABELS),
        TableRow(
            "no_latent_labels",
            "latents tell nothing of patches",
            settings={"latent_labels": 0.0, "latent_labels_until": 1.0},
        ),
        TableRow(
            "learned_latents",
            "the same, and they begin as learned vectors",
            _learned_latents,
            settings={"latent_labels": 0.0, "latent_labels_until": 1.0},
        ),
        TableRow("no_geometry_consistency", "no geometry_consistency", settings={"geometry_consistency": 0.0}),
        TableRow("no_stage0", "encoder random and frozen: no stage 0", uses_stage_0=False),
        TableRow(
            "predecessor",
            "the predecessor's wiring: first view, last layer, untrained linear layer, no geometry",
            predecessor.edit_model,
            settings={**_NO_LABELS, "trainable_parts": ["text"]},
            controls=("blind",),
            is_predecessor=True,
        ),
    )
}


def parse_rows(text: str) -> list[TableRow]:
    """Rows of a comma-separated list of names, or `all`.

    Raises:
        ValueError: naming those that are unknown, and all that are known.
    """
    names = list(ROWS) if text == "all" else [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in ROWS]
    if unknown or not names:
        raise ValueError(f"--rows names {', '.join(unknown) or 'nothing'}; known are all, {', '.join(ROWS)}")
    return [ROWS[name] for name in dict.fromkeys(names)]
