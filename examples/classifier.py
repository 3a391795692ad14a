"""Train a softmax classifier on handwritten digits with one fused kernel for the loss, and with torch.nn; compare."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType

import digits
import torch
from torch import nn

import mps_flash_attn

DESCRIPTION = """\
Train the plainest classifier, softmax regression, on handwritten digits (scikit-learn's), twice from the same seed and
on the same batches: with mps_flash_attn.nn.Linear and mps_flash_attn.nn.CrossEntropyLoss, whose log-softmax, gather and
label smoothing are one Metal kernel in each direction, then with those of torch.nn.
"""

SMOOTHING = 0.05


def build(layers: ModuleType) -> nn.Module:
    """Images [batch, 8, 8] to logits [batch, 10]."""
    return nn.Sequential(nn.Flatten(), layers.Linear(digits.PIXELS, digits.CLASSES))


TASK = digits.Task(
    "Softmax regression on digits",
    DESCRIPTION,
    build,
    (
        mps_flash_attn.nn.CrossEntropyLoss(label_smoothing=SMOOTHING),
        torch.nn.CrossEntropyLoss(label_smoothing=SMOOTHING),
    ),
    steps=300,
    learning_rate=1e-2,
)


def main(arguments: Sequence[str] | None = None) -> int:
    return digits.compare(TASK, "classifier", arguments)


if __name__ == "__main__":
    sys.exit(main())
