"""Train a multilayer perceptron on handwritten digits, with mps_flash_attn.nn and with torch.nn, and compare."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType

import digits
from torch import nn
from torch.nn import functional

DESCRIPTION = """\
Train a multilayer perceptron to read handwritten digits (scikit-learn's), twice from the same seed and on the same
batches: with the layers of mps_flash_attn.nn (GEMM with bias, LayerNorm, GELU, forward and backward as Metal kernels),
then with those of torch.nn. The loss is PyTorch's both times; examples/classifier.py uses ours.
"""


def build(layers: ModuleType) -> nn.Module:
    """Images [batch, 8, 8] to logits [batch, 10], by way of 96 and 48 features."""
    return nn.Sequential(
        nn.Flatten(),
        layers.Linear(digits.PIXELS, 96),
        layers.LayerNorm(96),
        layers.GELU(),
        layers.Linear(96, 48),
        layers.GELU(),
        layers.Linear(48, digits.CLASSES),
    )


TASK = digits.Task(
    "Multilayer perceptron on digits",
    DESCRIPTION,
    build,
    (functional.cross_entropy, functional.cross_entropy),
    steps=200,
    learning_rate=3e-3,
)


def main(arguments: Sequence[str] | None = None) -> int:
    return digits.compare(TASK, "mlp", arguments)


if __name__ == "__main__":
    sys.exit(main())
