# %% [markdown]
# # Quickstart
#
# Load a model, ask it about a room, let it place an anchor in metres, draw that, and train it a little further.
#
# The model is a folder that `train.py` left, or a name on the Hub; set `MODEL` to choose another. `make demo` makes
# `outputs/demo` in some minutes without a GPU: a tiny model, so expect little of its answers.

# %%
import json
import os
import sys
from pathlib import Path

ROOT = Path.cwd() if Path("train.py").is_file() else Path.cwd().parent
os.chdir(ROOT)
sys.path.insert(0, str(ROOT))
MODEL = os.environ.get("MODEL", "outputs/demo")

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained(MODEL, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(MODEL, trust_remote_code=True)
print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {model.dtype}")

# %% [markdown]
# ## A room
#
# Four views of a procedural room, with cameras and depth. Lengths are metres; the world has Z up; a camera looks along
# its own +Z, with x to the right and y down (OpenCV). Intrinsics are in pixels of the images as they are passed in.

# %%
folder = Path("hub_upload/space/examples/study")
cameras = json.loads((folder / "cameras.json").read_text())
intrinsics, world_from_cam = np.array(cameras["intrinsics"]), np.array(cameras["world_from_cam"])
views = [Image.open(folder / f"views/{i}.jpg") for i in range(len(intrinsics))]
depth = [np.asarray(Image.open(folder / f"depth/{i}.png")) / 1000 for i in range(len(intrinsics))]


def show(images):
    _, axes = plt.subplots(1, len(images), figsize=(14, 3.6))
    for number, (axis, image) in enumerate(zip(axes, images)):
        axis.imshow(image)
        axis.set_title(f"view {number}")
        axis.axis("off")
    plt.show()


show(views)

# %% [markdown]
# ## Ask
#
# From the photographs alone. `processor.conversation` words the question as in training; all images of a conversation
# are views of one room. `encode_scene` looks at them once; every question after that takes in its own words alone.


# %%
def generate(messages, max_new_tokens, scene, constraint=None):
    prompt = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    inputs = processor(text=[prompt], scene=scene)
    options = {"fast": True, "do_sample": False, "max_new_tokens": max_new_tokens, "constraint": constraint}
    tokens = model.generate(**inputs, scene=scene, **options)
    new_tokens = tokens[:, inputs["input_ids"].shape[1] :]
    return processor.batch_decode(new_tokens, skip_special_tokens=True)[0].strip()


photographs = model.encode_scene(**processor(images=[views]), fast=True)
for question in ("What colour is the desk?", "How many windows are there?", "Is there a bookshelf?"):
    print(f"{question:32} {generate(processor.conversation(question, num_views=len(views)), 32, photographs)}")

# %% [markdown]
# The same through a pipeline, as with any model on the Hub. The messages are those that the model was trained with;
# only the views take their places.

# %%
from transformers import pipeline

ask = pipeline("image-text-to-text", model=MODEL, trust_remote_code=True)
messages = processor.conversation("Is there an armchair?", num_views=len(views))
messages[-1]["content"][: len(views)] = [{"type": "image", "image": view} for view in views]
print(ask(text=messages, max_new_tokens=32, return_full_text=False)[0]["generated_text"])

# %% [markdown]
# ## Act
#
# With cameras the model answers an instruction with one JSON action. It speaks in the frame of the first view;
# `decode_actions` checks the JSON and takes it to the world frame. Without cameras it says that metres are unknown.
# The constraint lets it write nothing but one such action.

# %%
instruction = processor.conversation("Place an anchor on the desk.", num_views=len(views), task="actions")
known = {"intrinsics": [intrinsics], "world_from_cam": [world_from_cam], "depth": [depth]}
room = model.encode_scene(**processor(images=[views], **known), fast=True)
text = generate(instruction, 200, room, processor.action_constraint(actions=["place_anchor"]))
(decoded,) = processor.decode_actions([text], room.world_from_ref, ["study"])
print(json.dumps(decoded["action"], indent=2) if decoded["action"] else f"no action: {decoded['error']}\n{text}")

print("without cameras:", processor.decode_actions([text], photographs.world_from_ref)[0]["error"])

# %% [markdown]
# ## Draw it
#
# In the views, and on a plan from above with the cameras.

# %%
from hub_upload.space.drawing import anchors_of, box_corners, draw_anchors

anchors = anchors_of(decoded["action"])
show([draw_anchors(view, anchors, k, matrix) for view, k, matrix in zip(views, intrinsics, world_from_cam)])

# %%
_, axis = plt.subplots(figsize=(5, 5))
for view, z, k, matrix in zip(views, depth, intrinsics, world_from_cam):
    rows, columns = np.mgrid[0 : z.shape[0] : 2, 0 : z.shape[1] : 2]
    scale = view.width / z.shape[1]
    pixels = np.stack([(columns + 0.5) * scale, (rows + 0.5) * scale, np.ones_like(z[rows, columns])], axis=-1)
    points = (pixels @ np.linalg.inv(k).T * z[rows, columns, None]).reshape(-1, 3) @ matrix[:3, :3].T + matrix[:3, 3]
    colours = np.asarray(view.resize(z.shape[::-1]))[rows, columns].reshape(-1, 3) / 255
    low = points[:, 2] < points[:, 2].min() + 2.0  # below the ceiling
    axis.scatter(*points[low, :2].T, c=colours[low], s=2)
for number, matrix in enumerate(world_from_cam):
    axis.annotate(
        f"view {number}", matrix[:2, 3], xytext=matrix[:2, 3] + 0.5 * matrix[:2, 2], arrowprops={"arrowstyle": "<-"}
    )
for anchor in anchors:
    axis.plot(*box_corners(anchor)[[0, 1, 3, 2, 0], :2].T, lw=2)
    axis.annotate(anchor["label"], anchor["center"][:2])
axis.set_aspect("equal")
axis.set_xlabel("x, metres")
axis.set_ylabel("y, metres")
plt.show()

# %% [markdown]
# ## Train it a little further
#
# `train.py` is a function, too. A few steps on procedural rooms, from the weights above; `data/rooms` is made on first
# use. The run leaves a checkpoint that loads like the one we began with.

# %%
import train
from training.embedded import embedded_dataset

DATASET = os.environ.get("DATASET") or embedded_dataset()
OUTPUT = os.environ.get("OUTPUT", "outputs/quickstart")
options = {"model": MODEL, "dataset": DATASET, "output_dir": OUTPUT, "max_steps": 4, "num_views": 4, "logging_steps": 1}
options |= {"per_device_train_batch_size": 16, "learning_rate": 1e-4, "save_strategy": "no", "report_to": "none"}
trainer = train.main([word for key, value in options.items() for word in (f"--{key}", str(value))])
losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
print("loss of each step:", [round(loss, 3) for loss in losses])

# %%
model = AutoModel.from_pretrained(OUTPUT, trust_remote_code=True).eval()
photographs = model.encode_scene(**processor(images=[views]), fast=True)
print(generate(processor.conversation("What colour is the desk?", num_views=len(views)), 32, photographs))

# %% [markdown]
# Next: `own_scan.ipynb` for your own photographs and scans, `docs/` for training and evaluation, `python eval.py` for
# figures that can be compared.
