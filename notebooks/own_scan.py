# %% [markdown]
# # Your own room
#
# From a folder of photographs: questions in words. From a capture with cameras (RoomPlan, ARKit): anchors in metres,
# and back to RoomPlan.
#
# Set `MODEL`, `PHOTOS` (a folder of photographs) and `CAPTURE` (a folder as below) to use your own.

# %%
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path.cwd() if Path("train.py").is_file() else Path.cwd().parent
os.chdir(ROOT)
sys.path.insert(0, str(ROOT))
MODEL = os.environ.get("MODEL", "outputs/demo")
PHOTOS = os.environ.get("PHOTOS", "hub_upload/space/examples/kitchen/views")
WORK = Path(os.environ.get("OUTPUT", "outputs/own_scan"))

import matplotlib.pyplot as plt
import numpy as np
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained(MODEL, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(MODEL, trust_remote_code=True)


def look(views, **cameras):
    """What the model sees; any number of questions can be asked about it."""
    return model.encode_scene(**processor(images=[views], **cameras), fast=True)


def ask(seen, num_views, question, task="scanqa", max_new_tokens=64, constraint=None):
    messages = processor.conversation(question, num_views=num_views, task=task)
    prompt = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    inputs = processor(text=[prompt], scene=seen)
    options = {"fast": True, "do_sample": False, "max_new_tokens": max_new_tokens, "constraint": constraint}
    tokens = model.generate(**inputs, scene=seen, **options)
    new_tokens = tokens[:, inputs["input_ids"].shape[1] :]
    return processor.batch_decode(new_tokens, skip_special_tokens=True)[0].strip()


# %% [markdown]
# ## Photographs
#
# `read_photos` takes a folder (or files) and spreads its choice over it. It reads cameras where it finds them
# (`transforms.json`, pose files), but only if you say which way is down: it never guesses. Here there are none.

# %%
from datasets_scripts.photos import read_photos

scene = read_photos(PHOTOS, num_views=8)
print(f"{len(scene.images)} views, cameras {'unknown' if scene.world_from_cam is None else 'known'}", *scene.notes)
_, axes = plt.subplots(1, len(scene.images), figsize=(14, 3.6), squeeze=False)
for axis, image, name in zip(axes[0], scene.images, scene.frame_ids):
    axis.imshow(image)
    axis.set_title(name)
    axis.axis("off")
plt.show()

# %%
seen = look(scene.images)
for question in ("What colour is the fridge?", "What is to the right of the door?"):
    print(f"{question:40} {ask(seen, len(scene.images), question)}")

# %% [markdown]
# ## A capture with cameras
#
# A capture is a folder for each scan: the RoomPlan export, and beside it the photographs with their ARKit cameras.
#
# ```
# captures/my-room/room.json                    what RoomPlan exported (CapturedRoom)
# captures/my-room/frames/frame_00000.jpg       a photograph
# captures/my-room/frames/frame_00000.json      {"cameraPoseARFrame": 16 numbers, "intrinsics": 9 numbers}, row-major
# captures/my-room/frames/depth_00000.png       optional: 16 bits, millimetres
# ```
#
# ARKit's world has Y up, and its cameras look along -Z. Without a capture at hand, this cell writes a procedural room
# in that very form, with the boxes that its questions name.

# %%
from PIL import Image

from datasets_scripts.roomplan import ZUP_FROM_YUP, write_roomplan
from training.data import SceneDataset
from training.embedded import embedded_dataset

ARKIT_FROM_CV_CAM = np.diag([1.0, -1.0, -1.0, 1.0])


def write_capture(folder, example, targets):
    """A scene of ours as an ARKit session with RoomPlan would have left it."""
    frames = folder / "frames"
    frames.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(example.images):
        yup_from_cam = ZUP_FROM_YUP.T @ example.world_from_cam[number] @ ARKIT_FROM_CV_CAM
        record = {"cameraPoseARFrame": yup_from_cam.ravel().tolist()}
        record["intrinsics"] = example.intrinsics[number].ravel().tolist()
        image.save(frames / f"frame_{number:05d}.jpg", quality=95)
        (frames / f"frame_{number:05d}.json").write_text(json.dumps(record))
        millimetres = np.round(example.depth[number] * 1000).astype(np.uint16)
        Image.fromarray(millimetres).save(frames / f"depth_{number:05d}.png")
    write_roomplan(folder / "room.json", targets)


CAPTURE = os.environ.get("CAPTURE")
if CAPTURE is None:
    CAPTURE = str(WORK / "captures")
    rooms = SceneDataset([os.environ.get("DATASET") or embedded_dataset()], "val", 8)
    of_first = [row for row in map(rooms.sample, range(len(rooms))) if row["scene_id"] == rooms.sample(0)["scene_id"]]
    targets = {json.dumps(target["center"]): target for row in of_first for target in row["targets"]}
    write_capture(Path(CAPTURE) / "my-room", rooms.read_scene(rooms.samples[0][2]), list(targets.values()))
print(sorted(path.name for path in Path(CAPTURE).glob("*/*")))

# %% [markdown]
# One command turns captures into a dataset, with an instruction for each thing that RoomPlan found and that can be
# named without doubt. What it leaves out, it counts and says why.

# %%
command = [sys.executable, "-m", "datasets_scripts.build", "--source", "roomplan", "--scan-root", CAPTURE]
command += ["--output", str(WORK / "data"), "--overwrite", "--num-views", "8", "--val-share", "0", "--num-proc", "1"]
built = subprocess.run(command, capture_output=True, text=True)
print(built.stdout or built.stderr)
built.check_returncode()

captures = SceneDataset([WORK / "data"], "train", num_views=8)
example = captures.read_scene(0)
instructions = [captures.sample(index)["question"] for index in range(len(captures))]
print(len(example.images), "views;", *instructions[:6], sep="\n  ")

# %% [markdown]
# ## Place an anchor
#
# The answer stands in the world of the capture: metres, Z up.

# %%
from hub_upload.space.drawing import anchors_of, draw_anchors

sample = captures.sample(0)
frames = example.frame_ids
if sample["anchor_frame_id"] is not None:  # "the door you see in the first view" names its first view
    frames = sorted(frames, key=lambda frame: frame != sample["anchor_frame_id"])
shown = captures.read_scene(0, frames)
cameras = {"intrinsics": [shown.intrinsics], "world_from_cam": [shown.world_from_cam], "depth": [shown.depth]}
seen = look(shown.images, **cameras)
constraint = processor.action_constraint()  # it writes nothing but actions
text = ask(seen, len(shown.images), sample["question"], task="actions", max_new_tokens=200, constraint=constraint)
(decoded,) = processor.decode_actions([text], seen.world_from_ref, [shown.scene_id])
print(sample["question"])
print(json.dumps(decoded["action"]) if decoded["action"] else f"no action: {decoded['error']}\n{text}")

# %%
anchors = anchors_of(decoded["action"])
_, axes = plt.subplots(1, 4, figsize=(14, 3.6))
for axis, view, k, matrix in zip(axes, shown.images, shown.intrinsics, shown.world_from_cam):
    larger = view.resize((448, 448 * view.height // view.width))
    axis.imshow(draw_anchors(larger, anchors, np.diag([448 / view.width, 448 / view.width, 1]) @ k, matrix))
    axis.axis("off")
plt.show()

# %% [markdown]
# ## ARKit without RoomPlan
#
# `frames` alone will do to place an anchor: ARKit states metres and which way is up, so nothing has to be said.

# %%
session = read_photos(next(Path(CAPTURE).glob("*/frames")), num_views=8)
cameras = {"intrinsics": [session.intrinsics], "world_from_cam": [session.world_from_cam], "depth": [session.depth]}
seen = look(session.images, **cameras)
question = "Place an anchor on the door."
text = ask(seen, len(session.images), question, task="actions", max_new_tokens=200, constraint=constraint)
(placed,) = processor.decode_actions([text], seen.world_from_ref, ["my-session"])
print("without RoomPlan:", json.dumps(placed["action"]) if placed["action"] else placed["error"])

# %% [markdown]
# ## Back to RoomPlan
#
# Anchors become RoomPlan-style JSON (Y up, column-major transforms), for any tool that reads RoomPlan's own.

# %%
from datasets_scripts.roomplan import targets_of_actions

actions = [decoded["action"]] if decoded["action"] else []
write_roomplan(WORK / "anchors.json", targets_of_actions(actions))
export = json.loads((WORK / "anchors.json").read_text())
print({group: len(items) for group, items in export.items() if isinstance(items, list)})

# %% [markdown]
# To train on your captures: `python train.py --model outputs/demo --dataset outputs/own_scan/data`. Photographs without
# cameras can be learnt from as well (`--source photos`, with your own questions): see docs/data.md.
