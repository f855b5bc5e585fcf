"""A page to try the model: show a room, ask about it, place anchors. Run `python app.py`, or let a Space run it.

The model is named by the environment variable MODEL, a Hub id or a checkpoint folder; else by the file model.txt.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from drawing import Anchor, anchors_of, draw_anchors, write_glb
from guide import Guide, QuestionError, Reply
from room import (
    MAX_FILE_MB,
    MAX_PHOTOGRAPHS,
    MAX_VIDEO_S,
    PHOTOGRAPH_SUFFIXES,
    VIDEO_SUFFIXES,
    Room,
    UploadError,
    example_names,
    read_example,
    read_upload,
)
from visitors import Session, Visitors

MODEL_FILE = Path(__file__).with_name("model.txt")
MAX_WAITING = 20
DECIMALS = 3
EXAMPLE = "Example: "
QUESTION, INSTRUCTION = "Answer in words", "Place an anchor"
INTRODUCTION = """# Ask about a room
Show a few photographs of one room, or a short video. Ask what is where; or, where the cameras are known, let the model
place an anchor in metres. It is a research model: it can be wrong without saying so. Uploads are not kept.
"""
ASK_FIRST = "Upload photographs, or choose an example room."


@dataclass(frozen=True)
class Host:
    """What the page does for each of its visitors. `request.session_hash` tells their pages apart."""

    guide: Guide
    visitors: Visitors

    def show_upload(self, paths: list[str] | None, request: gr.Request) -> tuple[Any, ...]:
        """Reads what was uploaded, removes the files, and shows the views."""
        try:
            room = read_upload(paths or [])
        except UploadError as error:
            raise gr.Error(str(error), duration=10) from error
        finally:
            for path in paths or []:
                Path(path).unlink(missing_ok=True)
        return self._show(room, request)

    def show_example(self, words: str, request: gr.Request) -> tuple[Any, ...]:
        """Shows the room that a button names."""
        try:
            return self._show(read_example(words.removeprefix(EXAMPLE)), request)
        except UploadError as error:
            raise gr.Error(str(error), duration=10) from error

    def _show(self, room: Room, request: gr.Request) -> tuple[Any, ...]:
        """The views of a new session, what is known of its cameras; upload, chat, action, 3D and times emptied."""
        session = self.visitors.show(request.session_hash, room)
        views, model = session.write_views(room.views), room_in_3d(session)
        return None, views, camera_words(room), [], "", model, ""

    def answer(
        self, question: str, kind: str, history: list[dict[str, Any]], request: gr.Request
    ) -> Iterator[tuple[Any, ...]]:
        """The chat as words come, then the action as JSON, in the views and in 3D, and the time of each step."""
        session = self.visitors.sessions.get(request.session_hash)
        if session is None:
            raise gr.Error(ASK_FIRST, duration=10)
        history = [*history, {"role": "user", "content": question}]
        try:
            for reply in self.guide.ask(session.room, question, wants_action=kind == INSTRUCTION):
                said = {"role": "assistant", "content": said_words(reply, kind)}
                yield "", [*history, said], gr.skip(), gr.skip(), gr.skip(), gr.skip()
        except QuestionError as error:
            raise gr.Error(str(error), duration=10) from error
        if self.visitors.sessions.get(request.session_hash) is session:  # else another room is shown by now, or none
            views, model = views_and_model(session, reply)
            yield "", [*history, said], views, action_json(reply), model, times(reply)

    def leave(self, request: gr.Request) -> None:
        """Forgets what the visitor has shown."""
        self.visitors.leave(request.session_hash)


def camera_words(room: Room) -> str:
    """What can be told in metres."""
    count = f"{len(room.views)} view{'s' if len(room.views) > 1 else ''}"
    if room.has_cameras:
        return f"**{count}, cameras known.** Anchors stand in metres, Z up."
    return f"**{count}, cameras unknown.** Questions are answered in words; places in metres cannot be known."


def said_words(reply: Reply, kind: str) -> str:
    """The model's part of the chat."""
    if reply.action is not None:
        labels = [anchor["label"] for anchor in anchors_of(reply.action)]
        return f"Placed {len(labels)} anchor{'s' if len(labels) > 1 else ''}: {', '.join(labels)}."
    if reply.error and reply.text:
        return f"That was no action that can be read ({reply.error}). The model said: `{reply.text}`"
    if reply.error:
        return reply.error
    return f"`{reply.text}`" if kind == INSTRUCTION else reply.text or "…"


def action_json(reply: Reply) -> str:
    """The action in the world frame, metres, to the millimetre; a vector a line."""
    if reply.action is None:
        return ""
    rounded = json.loads(json.dumps(reply.action), parse_float=lambda number: round(float(number), DECIMALS))
    text = json.dumps(rounded, indent=2, ensure_ascii=False)
    return re.sub(r"\[\s+(-?[\d.]+),\s+(-?[\d.]+),\s+(-?[\d.]+)\s+\]", r"[\1, \2, \3]", text)


def views_and_model(session: Session, reply: Reply) -> tuple[list[str], str | None]:
    """Files of the views with the anchors of a reply drawn in, and of the 3D scene."""
    room, anchors = session.room, anchors_of(reply.action)
    views = room.views
    if anchors:
        cameras = zip(room.views, room.intrinsics, room.world_from_cam, strict=True)
        views = [draw_anchors(view, anchors, k, world_from_cam) for view, k, world_from_cam in cameras]
    return session.write_views(views), room_in_3d(session, anchors)


def room_in_3d(session: Session, anchors: Sequence[Anchor] = ()) -> str | None:
    """The file of the 3D scene; None where the cameras are unknown."""
    room = session.room
    if not room.has_cameras:
        return None
    path = session.new_file(".glb")
    write_glb(path, anchors, room.views, room.intrinsics, room.world_from_cam, room.depth)
    return str(path)


def times(reply: Reply) -> str:
    """How long each step took."""
    return " · ".join(f"{step} {seconds:.2f} s" for step, seconds in reply.seconds.items())


def build(host: Host) -> gr.Blocks:
    """The page, which serves files where they lie: the library's own copies would outlive the visit."""
    gr.set_static_paths([host.visitors.rooms])
    with gr.Blocks(title="Ask about a room") as page:
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            with gr.Column(scale=5):
                upload = gr.File(
                    label=f"Up to {MAX_PHOTOGRAPHS} photographs of one room, or a video of {MAX_VIDEO_S:.0f} s",
                    file_count="multiple",
                    file_types=[*PHOTOGRAPH_SUFFIXES, *VIDEO_SUFFIXES],
                    height=140,
                )
                with gr.Row():
                    examples = [gr.Button(f"{EXAMPLE}{name}", size="sm") for name in example_names()]
                known = gr.Markdown(ASK_FIRST)
                views = gr.Gallery(label="Views", columns=4, height=250, object_fit="contain", elem_id="views")
                model = gr.Model3D(
                    label="Room and anchors", height=420, camera_position=(40, 50, None), elem_id="model"
                )
            with gr.Column(scale=4):
                chat = gr.Chatbot(label="Chat", height=380, elem_id="chat", feedback_options=None, buttons=["copy"])
                kind = gr.Radio([QUESTION, INSTRUCTION], value=QUESTION, show_label=False, elem_id="kind")
                question = gr.Textbox(
                    placeholder="What is next to the bed?", show_label=False, submit_btn=True, elem_id="question"
                )
                took = gr.Markdown(elem_id="times")
                action = gr.Code(label="Action: metres, Z up", language="json", elem_id="action", lines=8)
        shown = [upload, views, known, chat, action, model, took]
        upload.upload(host.show_upload, [upload], shown)
        for button in examples:
            button.click(host.show_example, [button], shown)
        page.unload(host.leave)
        kind.change(
            lambda kind: gr.Textbox(
                placeholder="Place an anchor on the bed." if kind == INSTRUCTION else "What is next to the bed?"
            ),
            kind,
            question,
        )
        question.submit(
            host.answer,
            [question, kind, chat],
            [question, chat, views, action, model, took],
            concurrency_id="model",
            concurrency_limit=1,
        )
    return page


def model_name() -> str:
    """The model to serve.

    Raises:
        SystemExit: none is named.
    """
    named = os.environ.get("MODEL") or (MODEL_FILE.read_text().strip() if MODEL_FILE.is_file() else "")
    if not named:
        raise SystemExit("name the model: MODEL=outputs/demo python app.py, or write its Hub id into model.txt")
    return named


def main() -> None:
    """Loads the model and serves the page; visitors who ask at the same time wait in a queue."""
    guide = Guide(model_name())
    visitors = Visitors()
    atexit.register(visitors.close)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # which alone would end the process without that
    visitors.sweep_now_and_then()
    os.environ["GRADIO_TEMP_DIR"] = str(visitors.uploads)
    page = build(Host(guide, visitors)).queue(max_size=MAX_WAITING)
    page.launch(max_file_size=f"{MAX_FILE_MB}mb", show_error=True, footer_links=["gradio"])


if __name__ == "__main__":
    main()
