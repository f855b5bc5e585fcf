"""Views, cameras, depth and text to one batch, and the model's text back to actions.

THE BATCH TABLE (B rows of text, S scenes, V views, P patches a view, T tokens, N visual tokens of a scene). Views are
padded to the largest V, padding last. N = num_latents, plus one token a view where cameras are known.

| key | dtype, shape | meaning |
|---|---|---|
| input_ids, attention_mask | int64 [B,T] | chat; N x `<|image_pad|>` in one place, or none in a blind batch |
| labels | int64 [B,T] | answer tokens and `<|im_end|>`, -100 elsewhere; only with `answers` |
| pixel_values | uint8 [S,V,3,H,W] | H, W multiples of the patch size; the model also takes float in [0,1] |
| view_mask | bool [S,V] | False = padding |
| patch_mask | bool [S,V,P] | only in image mode "pad": False = patch of padding |
| scene_index | int64 [B] | the row of S that a row of B looks at |
| geometry_mask | bool [S] | cameras known |
| ref_from_cam | float32 [S,V,4,4] | camera to ref (gravity-aligned frame of view 0); identity if unknown |
| intrinsics | float32 [S,V,3,3] | pixels of `pixel_values`, centres at +0.5; identity if unknown |
| depth_hist | float32 [S,V,16] | share of valid depth in 16 bins of 0.5 m, the last open; all zero = no depth |
| patch_points | float32 [S,V,P,3] | mean back-projected depth of the patch, ref metres; zero where masked |
| patch_points_mask | bool [S,V,P] | the patch holds valid depth |
| world_from_ref | float32 [S,4,4] | for `decode_actions`, ignored by the model; NaN if cameras are unknown |

Lengths are metres; cameras have OpenCV axes (x right, y down, z forward); world_from_ref is NaN without cameras so that
nobody can decode metres that were never known. Camera, point and depth tensors stay float32 whatever `.to(dtype=...)`
asks for. Made elsewhere, read by the model: position_ids, segment_ids, task_ids int64 [B,T], token_weights float32
[B,T]; vision_features, the encoder's output as a dict of layer -> [S,V,P',C] in place of pixel_values (P' patches where
the model pools them), with image_size (height, width) of the views behind it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from transformers import AutoTokenizer
from transformers.image_processing_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from .action_vggt_qwen3 import ActionError, action_to_world, parse_action
from .chat_vggt_qwen3 import CHAT_TEMPLATE, END_OF_TURN, IMAGE_PLACEHOLDER, IMAGE_TOKEN, conversation
from .constraint_vggt_qwen3 import ActionConstraint
from .image_processing_vggt_qwen3 import VggtQwen3ImageProcessor
from .scene_vggt_qwen3 import Arrays, ViewLayout, geometry_arrays

FLOAT32_KEYS = (
    "ref_from_cam",
    "intrinsics",
    "depth_hist",
    "patch_points",
    "world_from_ref",
    "token_weights",
)
SCENE_KEYS = (
    "pixel_values",
    "view_mask",
    "scene_index",
    "geometry_mask",
    "ref_from_cam",
    "intrinsics",
    "depth_hist",
    "patch_points",
    "patch_points_mask",
    "world_from_ref",
)
IGNORED_LABEL = -100
METRES_UNKNOWN = "metres are unknown without cameras: give intrinsics and world_from_cam of the views"


class VggtQwen3BatchFeature(BatchFeature):
    """A batch whose camera, point, depth and weight tensors are moved but never cast."""

    def to(self, *args: Any, **kwargs: Any) -> "VggtQwen3BatchFeature":
        """As `BatchFeature.to`; the keys of `FLOAT32_KEYS` follow to the device and keep their dtype."""
        kept = {key: self.data[key] for key in FLOAT32_KEYS if isinstance(self.data.get(key), torch.Tensor)}
        super().to(*args, **kwargs)
        for key, tensor in kept.items():
            if self.data[key].dtype != tensor.dtype:
                self.data[key] = tensor.to(self.data[key].device, non_blocking=kwargs.get("non_blocking", False))
        return self


class VggtQwen3Processor(ProcessorMixin):
    """Image processor and tokenizer of VGGT-Qwen3 in one.

    Args:
        image_processor: makes `pixel_values`.
        tokenizer: of the Qwen family (ChatML and vision tokens).
        chat_template: Jinja template; by default the project's own, ChatML without thinking.
        num_latents: visual tokens of a scene, as in the model's perceiver configuration.
        use_geometry_tokens: one further token a view where cameras are known, as in the model's configuration.

    Raises:
        ValueError: a tokenizer without the vision or turn tokens.
    """

    _auto_class = "AutoProcessor"

    def __init__(
        self,
        image_processor: VggtQwen3ImageProcessor | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        chat_template: str | None = None,
        num_latents: int = 128,
        use_geometry_tokens: bool = True,
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATE)
        self.num_latents = num_latents
        self.use_geometry_tokens = use_geometry_tokens
        self.image_token = IMAGE_TOKEN
        self.image_token_id = _token_id(tokenizer, IMAGE_TOKEN)
        self.end_of_turn_id = _token_id(tokenizer, END_OF_TURN)

    @classmethod
    def _get_arguments_from_pretrained(
        cls, pretrained_model_name_or_path: str, processor_dict: dict[str, Any] | None = None, **kwargs: Any
    ) -> list[Any]:
        """Takes the image processor class of this very package, so that loading needs no second look-up of code."""
        image_processor = VggtQwen3ImageProcessor.from_pretrained(pretrained_model_name_or_path, **kwargs)
        return [image_processor, AutoTokenizer.from_pretrained(pretrained_model_name_or_path, **kwargs)]

    @property
    def model_input_names(self) -> list[str]:
        """Keys of a batch that the model's forward takes."""
        return ["input_ids", "attention_mask", *SCENE_KEYS]

    def num_visual_tokens(self, num_views: int, has_geometry: bool) -> int:
        """Number N of `<|image_pad|>` tokens that stand for a scene."""
        return self.num_latents + (num_views if has_geometry and self.use_geometry_tokens else 0)

    def conversation(
        self, question: str, *, situation: str | None = None, num_views: int = 0, task: str = "scanqa"
    ) -> list[dict[str, Any]]:
        """The messages that ask a question; see `conversation` in chat_vggt_qwen3."""
        return conversation(question, situation=situation, num_views=num_views, task=task)

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        videos: None = None,
        audio: None = None,
        *,
        answers: str | Sequence[str] | None = None,
        intrinsics: Any = None,
        world_from_cam: Any = None,
        depth: Any = None,
        scene_index: Sequence[int] | NDArray[np.int64] | torch.Tensor | None = None,
        num_views: int | Sequence[int] | None = None,
        scene: Any = None,
        padding: bool | str = True,
        padding_side: str | None = None,
        max_length: int | None = None,
        return_tensors: str | None = "pt",
    ) -> VggtQwen3BatchFeature:
        """Makes a batch (see the table of the module).

        Args:
            images: one scene or a list of scenes, as `VggtQwen3ImageProcessor.preprocess` takes them; None with
                `num_views` when the encoder's output is cached, None alone for text that shows no image.
            text: rendered chats, each with one `<|vision_start|><|image_pad|><|vision_end|>`, or none at all when no
                images are given; None for scene tensors alone.
            answers: one a row: the row ends with it and `<|im_end|>`, and `labels` are returned.
            intrinsics: a scene [views, 3, 3] in pixels of the upright image as passed in, or a list of that or None
                (unknown), one a scene. With `num_views`, pixels of the model's image.
            world_from_cam: a scene [views, 4, 4] (metric, Z up, OpenCV axes), or a list of that or None, one a scene.
            depth: a scene's maps, or a list of that or None, one a scene; each map as `read_depth` takes it, or None.
                Another resolution than the image's is fine if the aspect agrees within 2 %.
            scene_index: row of `images` that each text looks at; by default its own, or the only one.
            num_views: number of views a scene, in place of `images`.
            scene: what the model's `encode_scene` returned, in place of `images`: later questions about it.
            padding: rows are always padded to the longest; here for callers that say so.
            padding_side: by default left without `answers` (generation), right with them.
            max_length: longest row in tokens, visual tokens included; by default the tokenizer's limit.
            return_tensors: "pt" or "np".

        Raises:
            ValueError: nothing to do, views, cameras, depth, text and scenes that do not belong together, values that
                the geometry refuses, or a row that is empty or too long; names the row, scene or view.
        """
        if videos is not None or audio is not None:
            raise ValueError("videos and audio are not understood: pass the frames of a video as images")
        if not padding:
            raise ValueError("rows are always padded to the longest: leave padding out")
        if images is None and text is None:
            raise ValueError("nothing to do: pass images, text, or both")
        data: Arrays = {}
        counts: list[int] = []
        cameras = any(value is not None for value in (intrinsics, world_from_cam, depth))
        if scene is not None:
            if images is not None or num_views is not None or cameras:
                raise ValueError("an encoded scene stands for images and cameras: leave them out, or leave out scene")
            counts = scene.num_visual_tokens
        elif images is not None or num_views is not None:
            data = self._scene_arrays(images, num_views, intrinsics, world_from_cam, depth)
            seen = zip(data["view_mask"].sum(axis=1).tolist(), data["geometry_mask"].tolist())
            counts = [self.num_visual_tokens(*each) for each in seen]
        elif cameras or scene_index is not None:
            raise ValueError("intrinsics, world_from_cam, depth and scene_index belong to images, and there are none")
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            data = {**self._text_arrays(texts, answers, counts, scene_index, padding_side, max_length), **data}
        elif answers is not None:
            raise ValueError("answers belong to text, and there is none")
        return VggtQwen3BatchFeature(data, tensor_type=return_tensors)

    def decode_actions(
        self,
        texts: str | Sequence[str],
        world_from_ref: ArrayLike | torch.Tensor | None = None,
        scene_ids: str | Sequence[str] | None = None,
        scene_index: Sequence[int] | torch.Tensor | None = None,
    ) -> list[dict[str, Any]]:
        """Reads actions from generated text and takes them to the world frame.

        Args:
            texts: one or more texts without special tokens.
            world_from_ref: [4, 4] for all texts, or one a text (with `scene_index` one a scene), as the batch has it.
                None or non-finite (cameras unknown): no action is decoded, whatever the text says.
            scene_ids: the value of `scene`, one for all texts, or one a text (with `scene_index` one a scene).
            scene_index: scene of each text, as the batch has it.

        Returns:
            One a text: {"action": in the world frame or None, "text": as given, "error": None or the reason}.

        Raises:
            ValueError: numbers of texts, transforms and scenes that do not agree.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        frames: list[Any] = [None] * len(texts)
        scenes: list[Any] = [None] * len(texts)
        if world_from_ref is not None:
            matrices = _array(world_from_ref).astype(np.float64)
            if matrices.shape[-2:] != (4, 4) or matrices.ndim not in (2, 3):
                raise ValueError(f"world_from_ref has the shape {matrices.shape}, wanted [4, 4] or one such a text")
            frames = _of_texts(matrices.reshape(-1, 4, 4), len(texts), scene_index, "world_from_ref")
        if scene_ids is not None:
            names = [scene_ids] if isinstance(scene_ids, str) else list(scene_ids)
            scenes = _of_texts(names, len(texts), scene_index, "scene_ids")
        return [_decoded(*row) for row in zip(texts, frames, scenes)]

    def action_constraint(
        self,
        *,
        actions: Sequence[str] | None = None,
        labels: Sequence[str] | None = None,
        max_new_tokens: int | None = None,
    ) -> ActionConstraint:
        """Lets `generate` write only actions: `model.generate(**inputs, logits_processor=[constraint])`.

        Args:
            actions: names of the actions that may be written; all by default.
            labels: the only labels that may be written; any text by default.
            max_new_tokens: as given to `generate`: lists end in time.

        Raises:
            ImportError, ValueError: as `ActionConstraint`.
        """
        return ActionConstraint(self.tokenizer, actions=actions, labels=labels, max_new_tokens=max_new_tokens)

    def _scene_arrays(self, images: Any, num_views: Any, intrinsics: Any, world_from_cam: Any, depth: Any) -> Arrays:
        """Every key of the table whose first dimension is S."""
        if images is not None and num_views is not None:
            raise ValueError("pass images, or num_views in their place, not both")
        if images is None:
            if self.image_processor.mode == "vggt_crop":
                raise ValueError("num_views stands for images of one size, and mode vggt_crop has none: pass images")
            size = (self.image_processor.size.height, self.image_processor.size.width)
            layout = ViewLayout.of_counts(np.atleast_1d(num_views).tolist(), size)
            pixels: Arrays = {"view_mask": layout.view_mask}
        else:
            pixels = dict(self.image_processor(images))
            size = pixels["pixel_values"].shape[-2:]
            made = [pixels.pop(key) for key in ("pixel_transform", "source_size", "exif_turned")]
            layout = ViewLayout(pixels["view_mask"], *made, size)
        geometry = geometry_arrays(layout, intrinsics, world_from_cam, depth, self.image_processor.patch_size)
        return {**pixels, **geometry}

    def _text_arrays(
        self,
        texts: list[str],
        answers: str | Sequence[str] | None,
        visual_counts: Sequence[int],
        scene_index: Any,
        padding_side: str | None,
        max_length: int | None,
    ) -> Arrays:
        """Every key of the table whose first dimension is B; `visual_counts`: visual tokens of each scene."""
        prompts = self._token_rows(texts, "text")
        arrays: Arrays = {}
        visual = np.zeros(len(texts), dtype=np.int64)
        if visual_counts:
            arrays["scene_index"] = _scene_rows(scene_index, len(texts), len(visual_counts))
            visual = np.array(visual_counts)[arrays["scene_index"]]
        rows = [self._with_visual_tokens(row, int(n), b) for b, (row, n) in enumerate(zip(prompts, visual))]
        endings = [np.zeros(0, dtype=np.int64)] * len(rows) if answers is None else self._endings(answers, len(rows))
        limit = max_length or self.tokenizer.model_max_length
        for b, (row, ending) in enumerate(zip(rows, endings)):
            if len(row) + len(ending) > limit:
                raise ValueError(
                    f"row {b} has {len(row) + len(ending)} tokens ({visual[b]} visual, {len(row) - visual[b]} of text, "
                    f"{len(ending)} of answer), {len(row) + len(ending) - limit} more than max_length {limit}: nothing "
                    "is cut off; shorten the question or raise max_length"
                )
        side = padding_side or ("left" if answers is None else "right")
        arrays["input_ids"] = _padded(
            [np.concatenate(pair) for pair in zip(rows, endings)], self.tokenizer.pad_token_id, side
        )
        arrays["attention_mask"] = _padded([np.ones(len(r) + len(e), np.int64) for r, e in zip(rows, endings)], 0, side)
        if answers is not None:
            labels = [np.concatenate([np.full(len(r), IGNORED_LABEL), e]) for r, e in zip(rows, endings)]
            arrays["labels"] = _padded(labels, IGNORED_LABEL, side)
        return arrays

    def _token_rows(self, texts: list[str], name: str) -> list[NDArray[np.int64]]:
        if not texts:
            raise ValueError(f"{name} has no rows")
        for b, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"{name} of row {b} is {'empty' if text == '' else repr(text)}, wanted words")
        encoded = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        return [np.asarray(ids, dtype=np.int64) for ids in encoded["input_ids"]]

    def _with_visual_tokens(self, row: NDArray[np.int64], num_tokens: int, b: int) -> NDArray[np.int64]:
        """Repeats the one image token of a row `num_tokens` times."""
        (places,) = np.nonzero(row == self.image_token_id)
        wanted = 1 if num_tokens else 0
        if len(places) != wanted:
            raise ValueError(
                f"row {b} holds {len(places)} {IMAGE_TOKEN}, wanted {wanted}: with images every row shows one "
                f"{IMAGE_PLACEHOLDER} for all views, without images none does (put blind rows in a batch of their own)"
            )
        if not num_tokens:
            return row
        return np.concatenate([row[: places[0]], np.full(num_tokens, self.image_token_id), row[places[0] + 1 :]])

    def _endings(self, answers: str | Sequence[str], num_rows: int) -> list[NDArray[np.int64]]:
        answers = [answers] if isinstance(answers, str) else list(answers)
        if len(answers) != num_rows:
            raise ValueError(f"answers has {len(answers)} entries for {num_rows} rows of text")
        rows = self._token_rows(answers, "answer")
        for b, row in enumerate(rows):
            if np.isin(row, self.tokenizer.all_special_ids).any():
                raise ValueError(f"answer of row {b} holds a control token: {answers[b][:200]!r}")
        return [np.append(row, self.end_of_turn_id) for row in rows]


def _token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    token_id = tokenizer.convert_tokens_to_ids(token)
    if token_id is None or tokenizer.convert_ids_to_tokens(token_id) != token:
        raise ValueError(f"the tokenizer {tokenizer.name_or_path!r} lacks {token}: use one of the Qwen family")
    return token_id


def _scene_rows(scene_index: Any, num_rows: int, num_scenes: int) -> NDArray[np.int64]:
    """The scene of each row of text; without an index its own, or the only one."""
    if scene_index is None:
        if num_scenes not in (1, num_rows):
            raise ValueError(
                f"{num_rows} rows of text and {num_scenes} scenes: say by scene_index which belongs to which"
            )
        return np.arange(num_rows) if num_scenes == num_rows else np.zeros(num_rows, dtype=np.int64)
    rows = _array(scene_index).astype(np.int64)
    if rows.shape != (num_rows,) or (rows < 0).any() or (rows >= num_scenes).any():
        raise ValueError(
            f"scene_index is {rows.tolist()}, wanted {num_rows} numbers, one a row of text, from 0 to {num_scenes - 1}"
        )
    return rows


def _padded(rows: list[NDArray[np.int64]], value: int, side: str) -> NDArray[np.int64]:
    if side not in ("left", "right"):
        raise ValueError(f"padding_side is {side!r}, wanted left or right")
    longest = max(len(row) for row in rows)
    out = np.full((len(rows), longest), value, dtype=np.int64)
    for b, row in enumerate(rows):
        if side == "left":
            out[b, longest - len(row) :] = row
        else:
            out[b, : len(row)] = row
    return out


def _array(value: Any) -> NDArray[Any]:
    """Also of a tensor on another device."""
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def _of_texts(values: Sequence[Any], num_texts: int, scene_index: Any, name: str) -> list[Any]:
    """The value of each text: by scene if there is an index, else its own or the only one."""
    if scene_index is None:
        if len(values) not in (1, num_texts):
            raise ValueError(f"{name} holds {len(values)} entries for {num_texts} texts: one, or one a text")
        return [values[text if len(values) > 1 else 0] for text in range(num_texts)]
    return [values[scene] for scene in _scene_rows(scene_index, num_texts, len(values))]


def _decoded(text: str, world_from_ref: NDArray[np.float64] | None, scene_id: str | None) -> dict[str, Any]:
    try:
        action = parse_action(text)
    except ActionError as error:
        return {"action": None, "text": text, "error": str(error)}
    if world_from_ref is None or not np.isfinite(world_from_ref).all():
        return {"action": None, "text": text, "error": METRES_UNKNOWN}
    return {"action": action_to_world(action, world_from_ref, scene_id), "text": text, "error": None}
