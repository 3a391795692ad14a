"""Measures an operation of this package beside what PyTorch offers for it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# PyTorch's profiler, which the memory benchmark reads, reports its own start and stop on stderr otherwise.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

import counters
import gemm
import gpu
import memory
import operations
import overhead
import records
import timing
import torch
from attention import Problem
from variants import VARIANTS

DESCRIPTION = """\
Measure an operation of this package. This is --op attention; `--op gemm --help` tells of products of matrices,
`--op norm --help` of norm, softmax, cross_entropy and elementwise.

Attention is measured beside PyTorch's scaled_dot_product_attention and the textbook formula, all in this one run.

  (default)    wall-clock time, medians of --repeat calls after a warm-up with the very same call
  --memory     peak memory beyond the inputs, against the length; one fresh process a point; draws a plot. With
               --variants, of ours with masks, windows, dropout and so on; on the CPU those count tensors alone
  --counters   what the kernels do in the simulator: matrix products, exponentials, barriers, bytes moved; beside
               PyTorch's own Metal kernel, taken from the installed PyTorch and executed by the same simulator
  --overhead   cost in Python of a call, with the launch itself switched off, beside an empty custom operator; and of
               a call with a number of keys that is new, which has to be planned, beside the same call once more

On --device cuda the default mode times forward and backward apart, with the device's events, beside each of PyTorch's
backends, and --plot draws what --json has gathered.

On --device cpu our kernels run in the simulator, which is for correctness: its times say nothing about a GPU. Its
counters do: they are exact and the same on every run.
"""

EPILOG = """\
examples:
  python benchmarks/run.py --op attention --length 256 512 1024 --causal --backward
  python benchmarks/run.py --op attention --device mps --dtype float16 --length 4096 --json out/attention.jsonl
  python benchmarks/run.py --op attention --memory --plot out/memory.png
  python benchmarks/run.py --op attention --memory --variants all --json out/memory.jsonl
  python benchmarks/run.py --op attention --counters --head-dim 64 128 --length 1024
"""

# Per mode: lengths, head sizes, heads and repeats unless the command line says otherwise.
DEFAULTS: dict[str, dict[str, Any]] = {
    "time": {"length": [512], "head_dim": [64], "heads": 4, "repeat": 10},
    "memory": {"length": [256, 512, 1024, 2048, 4096], "head_dim": [64], "heads": 1, "repeat": 1},
    "counters": {"length": [1024], "head_dim": [64, 128], "heads": 1, "repeat": 1},
    "overhead": {"length": [128], "head_dim": [64], "heads": 4, "repeat": 20},
}


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line; sizes that it leaves out come from the mode."""
    parser = argparse.ArgumentParser(
        description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def positive(text: str) -> int:
        if (number := int(text)) < 1:
            raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
        return number

    def variants(text: str) -> tuple[str, ...]:
        names = tuple(VARIANTS) if text == "all" else tuple(text.split(","))
        if unknown := [name for name in names if name not in VARIANTS]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r}; accepted are all, {', '.join(VARIANTS)}")
        return names

    parser.add_argument(
        "--op", choices=("attention", "gemm", *operations.OPERATIONS), required=True, help="the operation"
    )
    mode = parser.add_mutually_exclusive_group()
    for name in ("memory", "counters", "overhead"):
        mode.add_argument(f"--{name}", dest="mode", action="store_const", const=name, help="see above")
    parser.set_defaults(mode="time")
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda", "mps"),
        help="cpu is the simulator (default: mps if there is one, else cpu)",
    )
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16", "float64"), default="float32")
    parser.add_argument("--batch", type=positive, default=1)
    parser.add_argument("--heads", type=positive, help="of query, key and value (default 4; --memory, --counters 1)")
    parser.add_argument("--tokens", type=positive, help="batch times length, in place of --batch")
    parser.add_argument("--width", type=positive, help="heads times head size, in place of --heads")
    parser.add_argument("--length", type=positive, nargs="+", help="of queries and keys, one or more")
    parser.add_argument("--head-dim", type=positive, nargs="+", help="one or more")
    parser.add_argument("--causal", action="store_true", help="query i sees keys up to i")
    parser.add_argument("--backward", action="store_true", help="forward and gradients (--memory: always)")
    parser.add_argument(
        "--variants",
        type=variants,
        default=(),
        metavar="all|NAME,...",
        help=f"with --memory: of ours in these variants, in place of other implementations: {', '.join(VARIANTS)}",
    )
    parser.add_argument("--repeat", type=positive, help="calls (--overhead: rounds of calls) that a median is taken of")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="append one JSON object a line, with date and versions"
    )
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="of --memory (default out/memory.png) or --device cuda"
    )
    args = parser.parse_args(arguments)
    for name, value in DEFAULTS[args.mode].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.variants and (args.mode != "memory" or args.causal):
        parser.error("--variants goes with --memory, without --causal, which is one of them")
    if args.mode == "memory":
        args.backward = True
        if len(args.head_dim) > 1:
            parser.error("--memory draws one plot: give one --head-dim")
    if args.plot is not None and args.mode != "memory" and (args.device != "cuda" or args.json is None):
        parser.error("--plot draws --memory, or what --device cuda appends to --json")
    args.device = args.device or ("mps" if torch.backends.mps.is_available() else "cpu")
    if args.mode == "counters" and args.device != "cpu":
        parser.error("--counters come from the simulator: use --device cpu")
    return args


def problems(args: argparse.Namespace) -> list[Problem]:
    """Every combination of length and head size."""
    return [
        Problem(
            args.tokens // length if args.tokens else args.batch,
            args.width // head_dim if args.width else args.heads,
            length,
            head_dim,
            args.dtype,
            args.causal,
            args.backward,
            args.device,
        )
        for head_dim in args.head_dim
        for length in args.length
    ]


def _operation(arguments: Sequence[str] | None) -> str | None:
    """The operation that the command line names, which has options of its own."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("--op")
    chosen: str | None = parser.parse_known_args(arguments)[0].op
    return chosen


def main(arguments: Sequence[str] | None = None) -> None:
    others = {"gemm": gemm.main, **dict.fromkeys(operations.OPERATIONS, operations.main)}
    if (chosen := others.get(_operation(arguments) or "")) is not None:
        chosen(arguments)
        return
    args = parse_arguments(arguments)
    shapes = problems(args)
    setting = f"{args.dtype}, batch {args.batch}, {args.heads} head{'s' * (args.heads > 1)}, {args.device}"
    setting += (", causal" if args.causal else "") + (", forward and backward" if args.backward else ", forward")
    if args.mode == "time" and args.device == "cuda":
        results = gpu.measure(shapes, args.repeat)
        records.show(f"Attention on {torch.cuda.get_device_name()}: {args.dtype}, causal {args.causal}", results)
    elif args.mode == "time":
        results = timing.measure(shapes, args.repeat)
        records.show(f"Time of attention: {setting}", results)
    elif args.mode == "memory":
        results = memory.measure(shapes, args.variants)
        caption = "PyTorch's attention is fused on the CPU. On mps it is not when gradients are needed: see naive."
        comparing = args.device == "cpu" and not args.variants
        records.show(f"Peak extra memory of attention: {setting}", results, caption if comparing else None)
        file = args.plot or Path("out/memory-variants.png" if args.variants else "out/memory.png")
        plot = memory.plot_variants if args.variants else memory.plot
        plot(results, f"Peak extra memory of attention, {setting}", file)
        print(f"Plot: {file}")
    elif args.mode == "counters":
        results = counters.measure(shapes)
        records.show(f"What the kernels do: {setting}", results)
    else:
        results = overhead.measure(shapes, args.repeat)
        records.show(f"Cost of a call in Python: {setting}", results)
    if args.json is not None:
        common = {"op": args.op, "mode": args.mode, "dtype": args.dtype, "batch": args.batch, "heads": args.heads}
        common |= {"causal": args.causal, "backward": args.backward}
        records.append(args.json, [{**common, **record} for record in results], torch.device(args.device))
        if args.plot is not None and args.device == "cuda":
            gpu.plot(args.json, args.plot)


if __name__ == "__main__":
    main()
