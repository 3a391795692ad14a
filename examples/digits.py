"""What the examples on handwritten digits share: the data, and one model trained with two sets of layers."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType

# PyTorch's threads would otherwise spin after each operation, on the cores that the simulator's threads need.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
import training
from rich.console import Console
from sklearn import datasets
from torch import Tensor, nn

import mps_flash_attn

__all__ = ["CLASSES", "PIXELS", "SIDE", "Task", "compare"]

SIDE = 8
PIXELS = SIDE * SIDE
CLASSES = 10
HELD_OUT = 0.2  # of the images, chosen by the seed


@dataclass(frozen=True)
class Digits:
    """Scans of handwritten digits, 8 x 8 pixels of 16 greys, 1,797 in all (UCI, by way of scikit-learn).

    Attributes:
        images: float32 in 0..1, [images, 8, 8].
        labels: int64 in 0..9, [images].
    """

    images: Tensor
    labels: Tensor

    @classmethod
    def load(cls, seed: int, device: torch.device) -> tuple[Digits, Digits]:
        """The images to train on and those held out."""
        raw = datasets.load_digits()
        images = torch.from_numpy(raw.images).float().div(16).to(device)
        labels = torch.from_numpy(raw.target).long().to(device)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).to(device)
        held_out = int(len(labels) * HELD_OUT)
        parts = order[held_out:], order[:held_out]
        train, test = (cls(images[part], labels[part]) for part in parts)
        return train, test

    def batches(self, size: int, count: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields ``count`` random batches of images and labels, the same ones for the same seed."""
        generator = torch.Generator().manual_seed(seed)
        for _ in range(count):
            chosen = torch.randint(len(self.labels), (size,), generator=generator).to(self.labels.device)
            yield self.images[chosen], self.labels[chosen]


#: Builds a model of the layers of a module: `torch.nn` or `mps_flash_attn.nn`.
Build = Callable[[ModuleType], nn.Module]


@dataclass(frozen=True)
class Task:
    """One example.

    Attributes:
        title: of the plot.
        description: for ``--help``.
        build: the model; images [batch, 8, 8] to logits [batch, 10].
        loss: of logits and labels, with our functions and with PyTorch's.
        steps, learning_rate: defaults.
    """

    title: str
    description: str
    build: Build
    loss: tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]
    steps: int
    learning_rate: float


def parse_arguments(task: Task, name: str, arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=task.description,
        epilog=f"examples:\n  python examples/{name}.py\n  python examples/{name}.py --steps 20 --batch 32\n"
        f"  python examples/{name}.py --device mps --out out/mine.png\n\n"
        "Exit code 0 means that both trainings agree; otherwise it is 1.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    training.add_common_arguments(parser, steps=task.steps, out=f"out/{name}.png")
    parser.add_argument("--batch", type=training.positive, default=128, help="images a step (default %(default)s)")
    parser.add_argument(
        "--learning-rate", type=float, default=task.learning_rate, help="of AdamW (default %(default)s)"
    )
    return parser.parse_args(arguments)


def compare(task: Task, name: str, arguments: Sequence[str] | None) -> int:
    """Trains the model with this package's layers and with PyTorch's, reports, plots; returns the exit code."""
    args = parse_arguments(task, name, arguments)
    device, console = torch.device(args.device), Console(highlight=False)
    train, test = Digits.load(args.seed, device)
    where = "the Apple GPU" if device.type == "mps" else "the CPU, our kernels in the simulator"
    console.print(f"{len(train.labels):,} digits to train on, {len(test.labels):,} held out; on {where}.")
    ours, theirs = (
        _train(label, layers, task.build, loss, train, test, args)
        for label, layers, loss in zip(
            ("mps-flash-attn", "PyTorch"), (mps_flash_attn.nn, torch.nn), task.loss, strict=True
        )
    )
    comparison = training.Comparison.of(ours, theirs, "float32")
    training.report(console, ours, theirs, (args.batch, "images"))
    training.plot(ours, theirs, comparison, f"{task.title}, on {device.type}", "nats per image", args.out)
    console.print(f"Plot: {args.out}")
    return training.conclude(console, comparison, "the model learnt from our kernels alone")


def _train(
    label: str,
    layers: ModuleType,
    build: Build,
    loss: Callable[[Tensor, Tensor], Tensor],
    train: Digits,
    test: Digits,
    args: argparse.Namespace,
) -> training.Run:
    torch.manual_seed(args.seed)
    device = torch.device(args.device)
    model = build(layers).to(device)
    run = training.Run(label, model)
    training.fit(
        run,
        train.batches(args.batch, args.steps, args.seed),
        args.steps,
        lambda batch: loss(model(batch[0]), batch[1]),
        torch.optim.AdamW(model.parameters(), lr=args.learning_rate),
        device,
        per_step=(args.batch, "images"),
    )
    with torch.inference_mode():
        right = model.eval()(test.images).argmax(-1) == test.labels
    run.results["held-out accuracy"] = f"{100 * right.float().mean().item():.1f} %"
    return run
