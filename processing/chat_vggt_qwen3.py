"""How a conversation is worded and rendered: ChatML as in Qwen3 without thinking, one placeholder for all images."""

from typing import Any

IMAGE_TOKEN = "<|image_pad|>"
IMAGE_PLACEHOLDER = f"<|vision_start|>{IMAGE_TOKEN}<|vision_end|>"
END_OF_TURN = "<|im_end|>"

ANSWER_TASKS = ("scanqa", "sqa3d", "rooms_qa")
ACTION_TASKS = ("actions", "rooms_actions")
ANSWER_INSTRUCTION = "You see views of one room. Answer in a few words."
ACTION_INSTRUCTION = (
    "You see views of one room. Answer with one JSON action in metres, seen from the first view: "
    "x to the right, y ahead, z up."
)

CHAT_TEMPLATE = (
    """\
{%- set scene = namespace(turn=-1) %}
{%- for message in messages %}
{%- if message.role not in ['system', 'user', 'assistant'] %}
{{- raise_exception('the role ' ~ message.role ~ ' is unknown: use system, user or assistant') }}
{%- endif %}
{%- set turn = loop.index0 %}
{{- '<|im_start|>' ~ message.role ~ '\\n' }}
{%- if message.content is string %}
{%- set words = message.content %}
{{- message.content }}
{%- else %}
{%- set words = message.content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join %}
{%- for block in message.content %}
{%- if block.type == 'image' %}
{%- if scene.turn == -1 %}
{%- set scene.turn = turn %}
{{- '"""
    + IMAGE_PLACEHOLDER
    + """' }}
{%- elif scene.turn != turn %}
{{- raise_exception('images in a later turn: all images of a conversation are one scene, put them in one turn') }}
{%- endif %}
{%- elif block.type == 'text' %}
{{- block.text }}
{%- else %}
{{- raise_exception('content of type ' ~ block.type ~ ' is not understood: use image and text') }}
{%- endif %}
{%- endfor %}
{%- endif %}
{%- if message.role == 'user' and not words | trim %}
{{- raise_exception('the question is empty: a user turn needs text') }}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
)


def conversation(
    question: str, *, situation: str | None = None, num_views: int = 0, task: str = "scanqa"
) -> list[dict[str, Any]]:
    """The messages that ask a question; the one place where prompts are worded.

    Args:
        question: a question, or for an action task an instruction.
        situation: where the asker stands ("I am standing by the bed facing the window."), put before the question.
        num_views: number of image blocks; 0 leaves the scene out (blind).
        task: scanqa, sqa3d, rooms_qa (a short answer), actions or rooms_actions (a JSON action).

    Returns:
        [system message, user message], for `apply_chat_template(..., add_generation_prompt=True)`.

    Raises:
        ValueError: an unknown task, a negative number of views, an empty question, or control tokens in the text.
    """
    if task not in ANSWER_TASKS + ACTION_TASKS:
        raise ValueError(f"task is {task!r}, wanted one of {', '.join(ANSWER_TASKS + ACTION_TASKS)}")
    if num_views < 0:
        raise ValueError(f"num_views is {num_views}, wanted 0 or more")
    if not question or not question.strip():
        raise ValueError("the question is empty")
    text = question.strip() if situation is None else f"{situation.strip()} {question.strip()}"
    if "<|" in text and "|>" in text:
        raise ValueError(f"the question holds a control token: {text[:200]!r}; write it without <| and |>")
    instruction = ACTION_INSTRUCTION if task in ACTION_TASKS else ANSWER_INSTRUCTION
    return [
        {"role": "system", "content": instruction},
        {"role": "user", "content": [{"type": "image"}] * num_views + [{"type": "text", "text": text}]},
    ]
