"""Whose terms a published model or dataset comes under: those of its encoder, its text model and its data.

What is not listed here is not published: an unknown source of data is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Encoder:
    """Where the weights of the vision encoder come from.

    Attributes:
        name: as `--encoder` takes it.
        origin: in words, for the card.
        licence: SPDX identifier in lower case as the Hub knows it, or "other".
        licence_name, licence_link: for a licence that the Hub does not know, or that is not ours.
        base_model: its Hub id, None when trained from random weights.
        wants_copy: the licence asks for a copy of itself beside the weights.
        notice: what NOTICE says.
    """

    name: str
    origin: str
    licence: str
    licence_name: str | None = None
    licence_link: str | None = None
    base_model: str | None = None
    wants_copy: bool = False
    notice: str = ""


ENCODERS = {
    encoder.name: encoder
    for encoder in (
        Encoder(
            "scratch",
            "trained from random weights by this project",
            "apache-2.0",
            notice="All weights were trained from random weights by this project and are licensed as LICENSE says.",
        ),
        Encoder(
            "vggt-1b",
            "facebook/VGGT-1B, frozen",
            "cc-by-nc-4.0",
            licence_link="https://creativecommons.org/licenses/by-nc/4.0/legalcode",
            base_model="facebook/VGGT-1B",
            notice=(
                "The weights of the vision encoder are those of VGGT-1B by Meta Platforms, Inc. and the Visual "
                "Geometry Group, University of Oxford (https://huggingface.co/facebook/VGGT-1B), licensed under "
                "CC BY-NC 4.0 (https://creativecommons.org/licenses/by-nc/4.0/): non-commercial use only, with "
                "attribution. They were renamed and stored in another layout; their values are unchanged unless the "
                "model card says that the encoder was trained further."
            ),
        ),
        Encoder(
            "vggt-1b-commercial",
            "facebook/VGGT-1B-Commercial, frozen",
            "other",
            licence_name="vggt-license",
            licence_link="LICENSE-VGGT",
            base_model="facebook/VGGT-1B-Commercial",
            wants_copy=True,
            notice=(
                "The weights of the vision encoder are those of VGGT-1B-Commercial by Meta Platforms, Inc. "
                "(https://huggingface.co/facebook/VGGT-1B-Commercial), licensed under the VGGT License: a copy is in "
                "LICENSE-VGGT, and its acceptable use policy binds every user of these weights. They were renamed and "
                "stored in another layout; their values are unchanged unless the model card says that the encoder was "
                "trained further."
            ),
        ),
    )
}


@dataclass(frozen=True)
class DataSource:
    """A source of data and its terms.

    Attributes:
        name: as the `source` column of a dataset has it.
        title: in words.
        licence: SPDX identifier as the Hub knows it, or None where only the owner's own terms apply.
        link: where the terms stand.
        may_redistribute: whether a built dataset of it may be published.
        reason: why not, and the way out.
    """

    name: str
    title: str
    licence: str | None
    link: str
    may_redistribute: bool = False
    reason: str = ""


_SCANNET_TERMS = (
    "its photographs are ScanNet's, whose terms of use forbid redistribution: publish the build command instead, and "
    "let others run it on their own copy"
)
_OWN_CAPTURE = (
    "whose photographs these are is not recorded: say `--own-data LICENCE` when they are yours and show nobody who has "
    "not agreed"
)

DATA_SOURCES = {
    source.name: source
    for source in (
        DataSource("rooms", "procedural rooms, made by this project", "apache-2.0", "LICENSE", may_redistribute=True),
        DataSource("scannet", "ScanNet", None, "http://www.scan-net.org/ScanNet/", reason=_SCANNET_TERMS),
        DataSource(
            "scanqa",
            "ScanQA on ScanNet",
            "cc-by-nc-sa-3.0",
            "https://github.com/ATR-DBI/ScanQA",
            reason=f"its questions are CC BY-NC-SA 3.0, but {_SCANNET_TERMS}",
        ),
        DataSource(
            "sqa3d",
            "SQA3D on ScanNet",
            "cc-by-4.0",
            "https://sqa3d.github.io",
            reason=f"its questions are CC BY 4.0, but {_SCANNET_TERMS}",
        ),
        DataSource(
            "arkitscenes",
            "ARKitScenes",
            None,
            "https://github.com/apple/ARKitScenes/blob/main/LICENSE",
            reason=(
                "Apple's licence lets parts be passed on only under its own terms and for non-commercial purposes: "
                "publish the build command instead, and let others run it on their own copy"
            ),
        ),
        DataSource(
            "legacy",
            "the predecessor's questions on ScanNet and ARKitScenes",
            None,
            "http://www.scan-net.org/ScanNet/",
            reason=_SCANNET_TERMS,
        ),
        DataSource("roomplan", "RoomPlan captures", None, "", reason=_OWN_CAPTURE),
        DataSource("planes", "captures with a list of planes", None, "", reason=_OWN_CAPTURE),
        DataSource("photos", "folders of photographs", None, "", reason=_OWN_CAPTURE),
    )
}
OWN_CAPTURES = tuple(name for name, source in DATA_SOURCES.items() if source.reason == _OWN_CAPTURE)


def find_sources(names: Iterable[str]) -> list[DataSource]:
    """The sources of these names, sorted.

    Raises:
        ValueError: for names whose terms are not known, all at once.
    """
    names = sorted(set(names))
    unknown = [name for name in names if name not in DATA_SOURCES]
    if unknown:
        raise ValueError(
            f"the terms of the data source {', '.join(unknown)} are not known: add it with its licence to "
            f"hub_upload/licences.py, which has {', '.join(DATA_SOURCES)}"
        )
    return [DATA_SOURCES[name] for name in names]


def publishable_licence(names: Iterable[str], own_data: str | None = None) -> str:
    """The licence under which a built dataset of these sources may be published.

    Args:
        names: the sources.
        own_data: licence that the owner gives to own captures.

    Raises:
        ValueError: for sources that may not be passed on, each with the reason.
    """
    sources = find_sources(names)
    refused = [
        f"{source.name}: {source.reason}"
        for source in sources
        if not source.may_redistribute and not (own_data and source.name in OWN_CAPTURES)
    ]
    if refused:
        raise ValueError("this dataset may not be published. " + "; ".join(refused))
    licences = sorted({own_data if source.name in OWN_CAPTURES else source.licence for source in sources})
    if len(licences) != 1:
        raise ValueError(
            f"the sources come under different licences ({', '.join(licences)}): publish a dataset of each"
        )
    return licences[0]
