"""Train a small character-level GPT twice, with mps-flash-attn and with PyTorch's own attention, and compare."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import resource
import statistics
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

# PyTorch's threads would otherwise spin after each operation, on the cores that the simulator's threads need.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

import mps_flash_attn

DESCRIPTION = """\
Train a small character-level GPT on real text, twice from the same seed and on the same batches: first with
mps_flash_attn.patch() on, then with PyTorch's own attention. The model is plain PyTorch and calls nothing but
torch.nn.functional.scaled_dot_product_attention, so this is what patch() does to existing training code.

The attention kernels run on the Apple GPU ("mps") where there is one. Elsewhere the simulator executes the very
same Metal source on the CPU: slower than PyTorch's own CPU attention, and every number is computed by the kernels.

Exit code 0 means that every attention call was accelerated and that both loss curves agree; otherwise it is 1.
"""

EPILOG = """\
examples:
  python examples/gpt_mini.py                             the default, a few minutes on two cores
  python examples/gpt_mini.py --steps 20 --layers 2       a quick look
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

# Largest difference between the two loss curves, in nats per character. The two attentions round differently, and
# training amplifies rounding from step to step.
TOLERANCE = {"float32": 0.01, "bfloat16": 0.05}
# Largest |difference| / |PyTorch's gradient| (2-norms over one parameter) on the first batch, before any update.
GRADIENT_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}


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
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(shape.width), SelfAttention(shape))
        self.mlp = nn.Sequential(
            nn.LayerNorm(shape.width),
            nn.Linear(shape.width, 4 * shape.width),
            nn.GELU(),
            nn.Linear(4 * shape.width, shape.width),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x + self.mlp(x)


class GPT(nn.Module):
    """A decoder-only transformer over characters, without dropout."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.context = shape.context
        self.characters = nn.Embedding(shape.vocabulary, shape.width)
        self.positions = nn.Embedding(shape.context, shape.width)
        self.blocks = nn.Sequential(*(Block(shape) for _ in range(shape.layers)), nn.LayerNorm(shape.width))
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
        return self.to_logits(self.blocks(self.characters(tokens) + self.positions(positions)))

    def loss(self, tokens: Tensor) -> Tensor:
        """Mean cross-entropy of each next character, in nats. ``tokens`` is [B, L + 1]."""
        logits = self(tokens[:, :-1]).float()
        return functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def batches(tokens: Tensor, shape: Shape, count: int, seed: int) -> Iterator[Tensor]:
    """Yields ``count`` random pieces of the text, [batch, context + 1] each, the same ones for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.arange(shape.context + 1)
    for _ in range(count):
        starts = torch.randint(len(tokens) - shape.context, (shape.batch, 1), generator=generator)
        yield tokens[starts + offsets]


class PeakMemory:
    """The most memory in use since ``reset()``, in bytes.

    On ``mps`` what the driver holds for PyTorch, sampled by ``sample()``. Elsewhere the resident set of this
    process, from the kernel's own high-water mark where it can be reset (Linux).
    """

    def __init__(self, device: torch.device) -> None:
        self._on_mps = device.type == "mps"
        self._peak = 0

    def reset(self) -> None:
        self._peak = 0
        if self._on_mps:
            torch.mps.empty_cache()
        else:
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")

    def sample(self) -> int:
        if self._on_mps:
            now = torch.mps.driver_allocated_memory()
        else:
            try:
                status = Path("/proc/self/status").read_text()
                now = int(status.split("VmHWM:")[1].split()[0]) * 1024
            except OSError:
                unit = 1 if sys.platform == "darwin" else 1024
                now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        self._peak = max(self._peak, now)
        return self._peak


@dataclass
class Run:
    """What one training run produced. Losses are in nats per character, times in seconds, memory in bytes."""

    name: str
    model: GPT
    losses: list[float] = field(default_factory=list)
    held_out_loss: float = math.nan
    first_gradients: dict[str, Tensor] = field(default_factory=dict)
    step_seconds: list[float] = field(default_factory=list)
    peak_memory: int = 0


def learning_rate(step: int, steps: int) -> float:
    """Fraction of the peak rate: a linear warm-up over the first tenth, then half a cosine down to a tenth."""
    warm_up = max(1, steps // 10)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.55 + 0.45 * math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up))


def train(name: str, corpus: Corpus, shape: Shape, args: argparse.Namespace, device: torch.device) -> Run:
    """Trains one model from ``args.seed``. Two calls differ by nothing but the attention that is in force."""
    torch.manual_seed(args.seed)
    run = Run(name, GPT(shape).to(device))
    optimizer = torch.optim.AdamW(run.model.parameters(), lr=args.learning_rate, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, args.steps))
    autocast = torch.autocast(device.type, getattr(torch, args.dtype), enabled=args.dtype != "float32")
    memory = PeakMemory(device)
    memory.reset()
    progress = tqdm(batches(corpus.training, shape, args.steps, args.seed), name, args.steps, unit="step")
    for step, batch in enumerate(progress):
        start = time.perf_counter()
        with autocast:
            loss = run.model.loss(batch.to(device))
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            run.first_gradients = {n: p.grad.clone() for n, p in run.model.named_parameters() if p.grad is not None}
        nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        run.losses.append(loss.item())  # waits for the device
        run.step_seconds.append(time.perf_counter() - start)
        run.peak_memory = memory.sample()
        rate = shape.batch * shape.context / run.step_seconds[-1]
        progress.set_postfix_str(f"loss {run.losses[-1]:.3f}, {rate:,.0f} tokens/s")
    with torch.inference_mode(), autocast:
        held_out = batches(corpus.held_out, shape, 4, args.seed)
        run.held_out_loss = statistics.fmean(run.model.loss(batch.to(device)).item() for batch in held_out)
    return run


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


@dataclass(frozen=True)
class Comparison:
    """How far two runs are apart. Every check is written so that NaN fails it."""

    loss_differences: list[float]
    gradient_error: float
    tolerance: float
    gradient_tolerance: float

    @classmethod
    def of(cls, ours: Run, theirs: Run, dtype: str) -> Comparison:
        differences = [abs(a - b) for a, b in zip(ours.losses, theirs.losses, strict=True)]
        errors = [
            float((ours.first_gradients[name] - gradient).norm() / gradient.norm().clamp_min(1e-12))
            for name, gradient in theirs.first_gradients.items()
        ]
        worst = math.nan if any(math.isnan(error) for error in errors) else max(errors)
        return cls(differences, worst, TOLERANCE[dtype], GRADIENT_TOLERANCE[dtype])

    @property
    def largest(self) -> float:
        differences = self.loss_differences
        return math.nan if any(math.isnan(difference) for difference in differences) else max(differences)

    @property
    def agrees(self) -> bool:
        return self.largest <= self.tolerance and self.gradient_error <= self.gradient_tolerance


def plot(ours: Run, theirs: Run, comparison: Comparison, title: str, file: Path) -> None:
    """Draws both loss curves, and their difference below."""
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(9, 6.5), sharex=True, height_ratios=(3, 2), layout="constrained"
    )
    steps = range(1, len(ours.losses) + 1)
    above.plot(steps, ours.losses, color="#8ecae6", linewidth=5, solid_capstyle="round", label=ours.name)
    above.plot(steps, theirs.losses, color="#023047", linewidth=1.2, linestyle=(0, (4, 2)), label=theirs.name)
    above.set(title=title, ylabel="training loss (nats per character)")
    above.legend(frameon=False)
    # Equal losses have no logarithm: those steps stay without a point.
    different = [(step, d) for step, d in zip(steps, comparison.loss_differences, strict=True) if d > 0]
    below.plot(
        [step for step, _ in different],
        [difference for _, difference in different],
        ".",
        color="#fb8500",
        label="|difference| (no point: equal)",
    )
    below.set_yscale("log")
    below.axhline(comparison.tolerance, color="#9b2226", linewidth=1, label=f"tolerance {comparison.tolerance:g}")
    below.set(xlabel="step", ylabel="difference of the losses", xlim=(0, len(steps) + 1))
    below.set_ylim(top=10 * max([comparison.tolerance, *(difference for _, difference in different)]))
    below.legend(frameon=False, loc="upper right", ncols=2)
    for axes in (above, below):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)
    plt.close(figure)


def report(console: Console, ours: Run, theirs: Run, tokens_per_step: int) -> None:
    """Prints time, memory and losses of both runs side by side."""
    table = Table(title="Two trainings, one seed, the same batches", title_justify="left")
    table.add_column("")
    for run in (ours, theirs):
        table.add_column(run.name, justify="right")
    rows: Sequence[tuple[str, Callable[[Run], str]]] = (
        ("time, all steps", lambda run: f"{sum(run.step_seconds):.1f} s"),
        ("first step (compiles the kernels)", lambda run: f"{run.step_seconds[0]:.2f} s"),
        ("median step", lambda run: f"{1e3 * statistics.median(run.step_seconds):.0f} ms"),
        ("tokens per second", lambda run: f"{tokens_per_step / statistics.median(run.step_seconds):,.0f}"),
        ("peak memory of the process", lambda run: f"{run.peak_memory / 2**20:,.0f} MiB"),
        ("first training loss", lambda run: f"{run.losses[0]:.4f}"),
        ("last training loss", lambda run: f"{run.losses[-1]:.4f}"),
        ("held-out loss", lambda run: f"{run.held_out_loss:.4f}"),
    )
    for label, cell in rows:
        table.add_row(label, cell(ours), cell(theirs))
    console.print(table)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def positive(text: str) -> int:
        if (number := int(text)) < 1:
            raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
        return number

    parser.add_argument("--steps", type=positive, default=500, help="updates per model (default %(default)s)")
    parser.add_argument("--layers", type=positive, default=3, help="transformer blocks (default %(default)s)")
    parser.add_argument("--heads", type=positive, default=4, help="attention heads a block (default %(default)s)")
    parser.add_argument(
        "--width", type=positive, default=128, help="features, all heads together (default %(default)s)"
    )
    parser.add_argument("--context", type=positive, default=64, help="characters a model sees (default %(default)s)")
    parser.add_argument("--batch", type=positive, default=16, help="pieces of text a step (default %(default)s)")
    parser.add_argument(
        "--dtype", choices=sorted(TOLERANCE), default="float32", help="bfloat16 trains under torch.autocast"
    )
    parser.add_argument("--learning-rate", type=float, default=4e-3, help="peak rate of AdamW (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, batches and sampling (default %(default)s)")
    parser.add_argument("--device", choices=("mps", "cpu"), help="cpu is the simulator (default: mps if there is one)")
    parser.add_argument("--text", type=Path, help="train on this UTF-8 file, not on Python's standard library")
    parser.add_argument("--sample", type=int, default=300, help="characters to sample at the end (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("out/gpt_mini.png"), help="the plot (default %(default)s)")
    args = parser.parse_args(arguments)
    if args.width % args.heads:
        parser.error(f"--width {args.width} must be a multiple of --heads {args.heads}")
    if args.text is not None and not args.text.is_file():
        parser.error(f"--text {args.text} is not a file")
    args.device = args.device or ("mps" if torch.backends.mps.is_available() else "cpu")
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

    mps_flash_attn.reset_stats()
    with mps_flash_attn.patched(devices=(device.type,)):
        ours = train("mps-flash-attn", corpus, shape, args, device)
        continuation = sample(ours.model, corpus, "def ", args.sample, args.seed, device)
    stats = mps_flash_attn.stats()
    theirs = train("PyTorch", corpus, shape, args, device)
    comparison = Comparison.of(ours, theirs, args.dtype)

    console.rule("sample of the model trained with mps-flash-attn")
    console.print(continuation.expandtabs(4), markup=False)
    console.rule()
    report(console, ours, theirs, shape.batch * shape.context)
    plot(ours, theirs, comparison, f"Character-level GPT, {args.dtype}, on {device.type}", args.out)
    console.print(f"Plot: {args.out}")

    failures = []
    if stats.passed_on or not stats.accelerated:
        failures.append("not every attention call was accelerated")
    if not comparison.agrees:
        failures.append("the two trainings disagree")
    console.print(f"Attention calls by device: {stats}.")
    console.print(
        f"Loss curves differ by at most {comparison.largest:.2e} (tolerance {comparison.tolerance:g}), "
        f"{statistics.fmean(comparison.loss_differences):.2e} on average."
    )
    console.print(
        f"Gradients of the first batch differ by at most {comparison.gradient_error:.2e} relative "
        f"(tolerance {comparison.gradient_tolerance:g})."
    )
    for failure in failures:
        console.print(f"[bold red]FAILED[/]: {failure}")
    if not failures:
        console.print("[bold green]OK[/]: every attention call was accelerated, and both trainings agree.")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
