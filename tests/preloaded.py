"""Imported once by the server that forks the training processes of tests/test_stopping.py."""

import torch

import train  # noqa: F401

torch.set_num_threads(1)
