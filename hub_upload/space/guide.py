"""The model as the app uses it: words as they come, an action in metres, and how long each step took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from room import Room
from transformers import AutoModel, AutoProcessor, TextIteratorStreamer

ANSWER_TOKENS, ACTION_TOKENS = 64, 600
ROOMS_KEPT = 4
MAX_QUESTION_CHARS = 400
NO_METRES = (
    "Where the cameras stood cannot be known from photographs alone, so there is no place in metres to give. "
    "Ask in words, or try one of the example rooms: their cameras are known."
)


class QuestionError(ValueError):
    """A question that cannot be asked; the message is for the visitor."""


@dataclass
class Reply:
    """What is known so far. `seconds`: step -> how long it took."""

    text: str = ""
    action: dict[str, Any] | None = None
    error: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)


class _Streamer(TextIteratorStreamer):
    """Words as they come; notes when the first token of the answer came, which may be long before a whole word."""

    first_token: float | None = None
    has_prompt = False

    def put(self, value: torch.Tensor) -> None:
        """Takes the prompt first, then token after token."""
        if self.has_prompt and self.first_token is None:
            self.first_token = time.perf_counter()
        self.has_prompt = True
        super().put(value)


class Guide:
    """A loaded model.

    Args:
        model: checkpoint folder or Hub id.
    """

    def __init__(self, model: str) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = AutoModel.from_pretrained(model, trust_remote_code=True).to(device).eval()
        self.processor = AutoProcessor.from_pretrained(model, trust_remote_code=True)
        self.pool = ThreadPoolExecutor(max_workers=1)
        self.scenes: WeakKeyDictionary[Room, Any] = WeakKeyDictionary()  # as the model sees them; gone with the visitor

    def ask(self, room: Room, question: str, wants_action: bool) -> Iterator[Reply]:
        """Answers a question about a room, or follows an instruction; each reply holds more than the one before.

        Raises:
            QuestionError: an empty question, one that is too long, or one with control tokens.
        """
        if len(question) > MAX_QUESTION_CHARS:
            raise QuestionError(f"The question has {len(question)} characters: {MAX_QUESTION_CHARS} at most.")
        reply = Reply()
        if wants_action and not room.has_cameras:
            reply.error = NO_METRES
            yield reply
            return
        started = time.perf_counter()
        prompt = self._prompt(room, question, "actions" if wants_action else "scanqa")
        scene = self.pool.submit(self._scene, room).result()
        reply.seconds["looking"] = time.perf_counter() - started
        for text in self._words(prompt, scene, wants_action, reply):
            reply.text = text
            yield reply
        if wants_action:
            (decoded,) = self.processor.decode_actions([reply.text], scene.world_from_ref, [room.name])
            reply.action, reply.error = decoded["action"], decoded["error"]
        yield reply

    def _prompt(self, room: Room, question: str, task: str) -> str:
        try:
            messages = self.processor.conversation(question, num_views=len(room.views), task=task)
        except ValueError as error:
            raise QuestionError(f"That cannot be asked: {error}.") from error
        return self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def _scene(self, room: Room) -> Any:
        """The room as the model sees it; looked at once for all questions that follow."""
        if room in self.scenes:
            return self.scenes[room]
        cameras = {}
        if room.has_cameras:
            cameras = {"intrinsics": [room.intrinsics], "world_from_cam": [room.world_from_cam]}
            cameras["depth"] = None if room.depth is None else [room.depth]
        while len(self.scenes) >= ROOMS_KEPT:
            del self.scenes[next(iter(self.scenes))]
        self.scenes[room] = self.model.encode_scene(**self.processor(images=[room.views], **cameras), fast=True)
        return self.scenes[room]

    def _words(self, prompt: str, scene: Any, wants_action: bool, reply: Reply) -> Iterator[str]:
        """The text so far, again and again, while a thread generates; at last notes how long each part took."""
        streamer = _Streamer(self.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        started = time.perf_counter()
        inputs = self.processor(text=[prompt], scene=scene)
        num_tokens = inputs["input_ids"].shape[1]
        room_left = self.model.config.text_config.max_position_embeddings - num_tokens
        if room_left <= 0:
            raise QuestionError(
                f"The question takes {num_tokens} tokens, more than the model reads: ask a shorter one."
            )
        limit = min(ACTION_TOKENS if wants_action else ANSWER_TOKENS, room_left)
        constraint = self.processor.action_constraint(max_new_tokens=limit) if wants_action else None
        options = {"max_new_tokens": limit, "constraint": constraint, "do_sample": False, "fast": True}
        future = self.pool.submit(self.model.generate, **inputs, scene=scene, streamer=streamer, **options)
        future.add_done_callback(lambda _: streamer.text_queue.put(streamer.stop_signal))  # also when it failed
        text = ""
        for piece in streamer:
            text += piece
            yield text.strip()
        future.result()
        reply.seconds["reading the question"] = streamer.first_token - started
        reply.seconds["answering"] = time.perf_counter() - streamer.first_token
