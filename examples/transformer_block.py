"""Train one transformer block on handwritten digits, with mps_flash_attn.nn and with torch.nn, and compare."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import ModuleType

import digits
import torch
from torch import Tensor, nn

import mps_flash_attn

DESCRIPTION = """\
Train one pre-norm transformer block on handwritten digits (scikit-learn's): the eight rows of an image are eight tokens
of eight pixels. Twice from the same seed and on the same batches: with the layers of mps_flash_attn.nn (embedding,
LayerNorm, multi-head flash attention, linear layers, GELU), residual sums and loss by this package too, then with
torch.nn.
"""

WIDTH, HEADS = 64, 4


class RowTransformer(nn.Module):
    """Images [batch, 8, 8] to logits [batch, 10]: rows embedded, one block, the mean over rows classified."""

    def __init__(self, layers: ModuleType, add: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.add = add
        self.pixels = layers.Linear(digits.SIDE, WIDTH)
        self.places = layers.Embedding(digits.SIDE, WIDTH)
        self.before_attention = layers.LayerNorm(WIDTH)
        self.attention = layers.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.mlp = nn.Sequential(
            layers.LayerNorm(WIDTH), layers.Linear(WIDTH, 4 * WIDTH), layers.GELU(), layers.Linear(4 * WIDTH, WIDTH)
        )
        self.to_logits = nn.Sequential(layers.LayerNorm(WIDTH), layers.Linear(WIDTH, digits.CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        places = self.places(torch.arange(digits.SIDE, device=images.device))
        x = self.add(self.pixels(images), places)  # [batch, 8, WIDTH]
        normal = self.before_attention(x)
        x = self.add(x, self.attention(normal, normal, normal, need_weights=False)[0])
        x = self.add(x, self.mlp(x))
        return self.to_logits(x.mean(1))


def build(layers: ModuleType) -> nn.Module:
    return RowTransformer(layers, mps_flash_attn.functional.add if layers is mps_flash_attn.nn else torch.add)


TASK = digits.Task(
    "Transformer block on the rows of digits",
    DESCRIPTION,
    build,
    (mps_flash_attn.nn.CrossEntropyLoss(), torch.nn.CrossEntropyLoss()),
    steps=150,
    learning_rate=3e-3,
)


def main(arguments: Sequence[str] | None = None) -> int:
    return digits.compare(TASK, "transformer_block", arguments)


if __name__ == "__main__":
    sys.exit(main())
