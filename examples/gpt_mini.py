"""Train a small character-level GPT twice, with mps-flash-attn and with PyTorch's own attention, and compare."""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

# PyTorch's threads would otherwise spin after each operation, on the cores that the simulator's threads need.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
import training
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional
from training import Comparison, Run

import mps_flash_attn

DESCRIPTION = """\
Train a small character-level GPT on real text, twice from the same seed and on the same batches: first with
mps_flash_attn.patch() on, then with PyTorch's own attention. The model is plain PyTorch and calls nothing but
torch.nn.functional.scaled_dot_product_attention, so this is what patch() does to existing training code.

With --all-kernels the first model is made of this package's kernels altogether: mps_flash_attn.nn.convert() swaps its
layers, and residual sums and the loss come from mps_flash_attn.functional.

The kernels run on the Apple GPU ("mps") where there is one. Elsewhere the simulator executes the very
same Metal source on the CPU: slower than PyTorch's own CPU attention, and every number is computed by the kernels.

Exit code 0 means that every attention call was accelerated and that both loss curves agree; otherwise it is 1.
"""

EPILOG = """\
examples:
  python examples/gpt_mini.py                             the default, a few minutes on two cores
  python examples/gpt_mini.py --steps 20 --layers 2       a quick look
  python examples/gpt_mini.py --all-kernels --steps 60    not only attention: every layer from this package
  python examples/gpt_mini.py --text shakespeare.txt      any UTF-8 text of a few hundred kilobytes
  python examples/gpt_mini.py --width 192 --heads 4 --context 200 --dtype bfloat16
"""

# Pure Python, in every installation since 3.10, and long enough to learn indentation, names and docstrings from.
STANDARD_MODULES = (
    "argparse", "ast", "bdb", "calendar", "codecs", "configparser", "copy", "csv", "dataclasses", "difflib", "dis",
    "doctest", "enum", "fractions", "ftplib", "functools", "gettext", "heapq", "inspect", "ipaddress",
)  # fmt: skip
MAX_CHARACTERS = 1_000_000
HELD_OUT = 0.1  # the last part of the text, for the validation loss


def standard_library_text() -> str:
    """The source of some of Python's own modules, one after the other; a tab stands for four spaces of indentation."""
    folder = Path(sysconfig.get_path("stdlib"))
    files = (folder / f"{name}.py" for name in sorted(STANDARD_MODULES))
    source = "".join(file.read_text(encoding="utf-8") for file in files if file.is_file())
    return source.replace(4 * " ", "\t")[:MAX_CHARACTERS]


@dataclass(frozen=True)
class Corpus:
    """Text as integers, and the way back.

    Attributes:
        characters: the vocabulary; a token is an index into it.
        training, held_out: int64 tensors of tokens, shape [characters of that part].
    """

    characters: str
    training: Tensor
    held_out: Tensor

    @classmethod
    def of(cls, text: str) -> Corpus:
        characters = "".join(sorted(set(text)))
        token_of = {character: token for token, character in enumerate(characters)}
        tokens = torch.tensor([token_of[character] for character in text])
        split = int(len(tokens) * (1 - HELD_OUT))
        return cls(characters, tokens[:split], tokens[split:])

    def decode(self, tokens: Tensor) -> str:
        return "".join(self.characters[token] for token in tokens.tolist())


@dataclass(frozen=True)
class Shape:
    """Sizes of the model and of a batch."""

    layers: int
    heads: int
    width: int
    context: int
    batch: int
    vocabulary: int


@dataclass(frozen=True)
class Operations:
    """What the model computes with beside its layers."""

    add: Callable[[Tensor, Tensor], Tensor]
    cross_entropy: Callable[[Tensor, Tensor], Tensor]


PYTORCH = Operations(torch.add, functional.cross_entropy)
# Under autocast a branch is narrower than what it is added to, and this package's sum takes one dtype.
OURS = Operations(
    lambda x, branch: mps_flash_attn.functional.add(x, branch.to(x.dtype)), mps_flash_attn.functional.cross_entropy
)


class SelfAttention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.to_qkv = nn.Linear(shape.width, 3 * shape.width)
        self.to_out = nn.Linear(shape.width, shape.width)

    def forward(self, x: Tensor) -> Tensor:  # [B, L, width] -> [B, L, width]
        # [B, L, heads, D] seen as [B, heads, L, D]: strided views, never copied.
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.to_qkv(x).chunk(3, dim=-1)
        )
        heads = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.to_out(heads.transpose(1, 2).flatten(-2))


class Block(nn.Module):
    def __init__(self, shape: Shape, operations: Operations) -> None:
        super().__init__()
        self.add = operations.add
        self.attention = nn.Sequential(nn.LayerNorm(shape.width), SelfAttention(shape))
        self.mlp = nn.Sequential(
            nn.LayerNorm(shape.width),
            nn.Linear(shape.width, 4 * shape.width),
            nn.GELU(),
            nn.Linear(4 * shape.width, shape.width),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.add(x, self.attention(x))
        return self.add(x, self.mlp(x))


class GPT(nn.Module):
    """A decoder-only transformer over characters, without dropout."""

    def __init__(self, shape: Shape, operations: Operations = PYTORCH) -> None:
        super().__init__()
        self.context = shape.context
        self.operations = operations
        self.characters = nn.Embedding(shape.vocabulary, shape.width)
        self.positions = nn.Embedding(shape.context, shape.width)
        self.blocks = nn.Sequential(*(Block(shape, operations) for _ in range(shape.layers)), nn.LayerNorm(shape.width))
        self.to_logits = nn.Linear(shape.width, shape.vocabulary, bias=False)
        nn.init.normal_(self.characters.weight, std=0.1)
        nn.init.normal_(self.positions.weight, std=0.1)
        for name, module in self.blocks.named_modules():
            if isinstance(module, nn.Linear):
                # Residual branches start small, so that the sum over layers keeps its variance.
                branches = 2 * shape.layers if name.endswith(("to_out", "mlp.3")) else 1
                nn.init.normal_(module.weight, std=0.5 / math.sqrt(branches * module.in_features))

    def forward(self, tokens: Tensor) -> Tensor:  # [B, L] -> [B, L, vocabulary]
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        embedded = self.operations.add(self.characters(tokens), self.positions(positions))
        return self.to_logits(self.blocks(embedded))

    def loss(self, tokens: Tensor) -> Tensor:
        """Mean cross-entropy of each next character, in nats. ``tokens`` is [B, L + 1]."""
        logits = self(tokens[:, :-1]).float()
        return self.operations.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def batches(tokens: Tensor, shape: Shape, count: int, seed: int) -> Iterator[Tensor]:
    """Yields ``count`` random pieces of the text, [batch, context + 1] each, the same ones for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.arange(shape.context + 1)
    for _ in range(count):
        starts = torch.randint(len(tokens) - shape.context, (shape.batch, 1), generator=generator)
        yield tokens[starts + offsets]


def learning_rate(step: int, steps: int) -> float:
    """Fraction of the peak rate: a linear warm-up over the first tenth, then half a cosine down to a tenth."""
    warm_up = max(1, steps // 10)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.55 + 0.45 * math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up))


def train(name: str, model: GPT, corpus: Corpus, shape: Shape, args: argparse.Namespace) -> Run:
    """Trains a model. Two calls with equal models differ by nothing but the kernels that are in force."""
    device = torch.device(args.device)
    model = model.to(device)
    run = Run(name, model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, betas=(0.9, 0.95))
    autocast = torch.autocast(device.type, getattr(torch, args.dtype), enabled=args.dtype != "float32")
    training.fit(
        run,
        batches(corpus.training, shape, args.steps, args.seed),
        args.steps,
        lambda batch: model.loss(batch.to(device)),
        optimizer,
        device,
        per_step=per_step(shape),
        schedule=torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, args.steps)),
        autocast=autocast,
        clip=1.0,
    )
    with torch.inference_mode(), autocast:
        held_out = batches(corpus.held_out, shape, 4, args.seed)
        loss = statistics.fmean(model.loss(batch.to(device)).item() for batch in held_out)
    run.results["held-out loss"] = f"{loss:.4f}"
    return run


def new_model(shape: Shape, seed: int, operations: Operations) -> GPT:
    """A model with the weights of this seed."""
    torch.manual_seed(seed)
    return GPT(shape, operations)


def per_step(shape: Shape) -> tuple[int, str]:
    return shape.batch * shape.context, "tokens"


@torch.inference_mode()
def sample(model: GPT, corpus: Corpus, prompt: str, length: int, seed: int, device: torch.device) -> str:
    """Lets the model continue ``prompt`` by ``length`` characters."""
    generator = torch.Generator().manual_seed(seed)
    known = [corpus.characters.index(character) for character in prompt if character in corpus.characters]
    tokens = torch.tensor([known or [0]])
    for _ in range(length):
        logits = model(tokens[:, -model.context :].to(device))[0, -1].float().cpu()
        probabilities = (logits / 0.7).softmax(0)
        tokens = torch.cat((tokens, torch.multinomial(probabilities, 1, generator=generator)[None]), dim=1)
    return corpus.decode(tokens[0])


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    training.add_common_arguments(parser, steps=500, out="out/gpt_mini.png")
    parser.add_argument("--layers", type=training.positive, default=3, help="transformer blocks (default %(default)s)")
    parser.add_argument(
        "--heads", type=training.positive, default=4, help="attention heads a block (default %(default)s)"
    )
    parser.add_argument(
        "--width", type=training.positive, default=128, help="features, all heads together (default %(default)s)"
    )
    parser.add_argument(
        "--context", type=training.positive, default=64, help="characters a model sees (default %(default)s)"
    )
    parser.add_argument(
        "--batch", type=training.positive, default=16, help="pieces of text a step (default %(default)s)"
    )
    parser.add_argument(
        "--dtype", choices=sorted(training.TOLERANCE), default="float32", help="bfloat16 trains under torch.autocast"
    )
    parser.add_argument("--learning-rate", type=float, default=4e-3, help="peak rate of AdamW (default %(default)s)")
    parser.add_argument("--text", type=Path, help="train on this UTF-8 file, not on Python's standard library")
    parser.add_argument("--sample", type=int, default=300, help="characters to sample at the end (default %(default)s)")
    parser.add_argument("--all-kernels", action="store_true", help="every layer of the first model from this package")
    args = parser.parse_args(arguments)
    if args.width % args.heads:
        parser.error(f"--width {args.width} must be a multiple of --heads {args.heads}")
    if args.text is not None and not args.text.is_file():
        parser.error(f"--text {args.text} is not a file")
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse_arguments(arguments)
    console = Console(highlight=False)
    device = torch.device(args.device)
    text = args.text.read_text(encoding="utf-8") if args.text else standard_library_text()
    if len(text) * HELD_OUT < args.context + 2:
        console.print(f"The text has {len(text):,} characters, too few for a context of {args.context}; see --text.")
        return 1
    corpus = Corpus.of(text)
    shape = Shape(args.layers, args.heads, args.width, args.context, args.batch, len(corpus.characters))
    source = args.text or "Python's standard library"
    where = "the Apple GPU" if device.type == "mps" else "the CPU, our kernels in the simulator"
    console.print(f"Text: {len(text):,} characters of {source}, {shape.vocabulary} different ones.")
    console.print(
        f"Model: {shape.layers} layers, {shape.heads} heads, width {shape.width}, context {shape.context}, "
        f"{args.dtype}, on {where}."
    )

    model = new_model(shape, args.seed, OURS if args.all_kernels else PYTORCH)
    if args.all_kernels:
        mps_flash_attn.nn.convert(model)
    mps_flash_attn.reset_stats()
    with mps_flash_attn.patched(devices=(device.type,)):
        ours = train("mps-flash-attn", model, corpus, shape, args)
        continuation = sample(model, corpus, "def ", args.sample, args.seed, device)
    stats = mps_flash_attn.stats()
    theirs = train("PyTorch", new_model(shape, args.seed, PYTORCH), corpus, shape, args)
    comparison = Comparison.of(ours, theirs, args.dtype)

    console.rule("sample of the model trained with mps-flash-attn")
    console.print(continuation.expandtabs(4), markup=False)
    console.rule()
    training.report(console, ours, theirs, per_step(shape))
    title = f"Character-level GPT, {args.dtype}, on {device.type}"
    training.plot(ours, theirs, comparison, title, "nats per character", args.out)
    console.print(f"Plot: {args.out}")
    console.print(f"Attention calls by device: {stats}.")
    missed = ["not every attention call was accelerated"] if stats.passed_on or not stats.accelerated else []
    return training.conclude(console, comparison, "every attention call was accelerated", missed)


if __name__ == "__main__":
    sys.exit(main())
