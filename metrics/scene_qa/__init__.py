"""Question answering about scenes under the five protocols of the literature; `evaluate.load("metrics/scene_qa")`."""
