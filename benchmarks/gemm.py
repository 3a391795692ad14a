"""GEMM: our products beside PyTorch's, and the ladder, rung by rung."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import records
import timing
import torch
from torch import Tensor
from tqdm import tqdm

from mps_flash_attn.functional import matmul
from mps_flash_attn.ops.gemm import ladder
from mps_flash_attn.ops.gemm.ladder import tuned
from mps_flash_attn.ops.gemm.ladder.run import problem as ladder_problem
from mps_flash_attn.runtime import simulator

matplotlib.use("Agg")
import matplotlib.pyplot as plt

__all__ = ["main", "measure_ladder", "measure_time", "parse_arguments"]

DESCRIPTION = """\
Measure products of matrices, all in this one run.

  (default)  time of matmul, ours beside PyTorch's: medians of --repeat measurements after a warm-up with the same call
  --ladder   the ten rungs of mps_flash_attn/ops/gemm/README.md; on a GPU TFLOP/s beside PyTorch's matmul, on
             --device cpu what the simulator counts: bytes, transactions, barriers and matrix products

On --device cpu kernels run in the simulator, whose times say nothing about a GPU. Its counts are exact and the same on
every run.
"""

EPILOG = """\
examples:
  python benchmarks/run.py --op gemm --ladder --plot out/ladder.png
  python benchmarks/run.py --op gemm --device cuda --dtype float16 --size 4096 8192 --json out/gemm.jsonl
"""

_MATRIX_PRODUCT = 8**3  # multiply-adds
_LANES = 32

_SHOWN = ("device_bytes", "segments", "group_bytes", "group_accesses", "passes", "conflicts", "barriers")
_CAPTION = """\
Of device and threadgroup memory, for each multiply-add. Accesses, segments (128
bytes of device memory), passes over the 32 banks of threadgroup memory and
conflicts, those of the passes that another layout would save, are what a
simdgroup needs for 32 multiply-adds. Barriers: in all."""


@dataclass(frozen=True)
class Problem:
    """``C [rows, columns] = A [rows, depth] B [depth, columns]``; dtype by name."""

    rows: int
    columns: int
    depth: int
    dtype: str
    device: str

    @property
    def multiply_adds(self) -> int:
        return self.rows * self.columns * self.depth

    @property
    def size(self) -> str:
        return f"{self.rows} x {self.columns} x {self.depth}"

    def inputs(self) -> tuple[Tensor, Tensor]:
        """Random matrices, contiguous."""
        generator = torch.Generator().manual_seed(0)
        a, b = (
            torch.randn(shape, generator=generator).to(self.device, getattr(torch, self.dtype))
            for shape in ((self.rows, self.depth), (self.depth, self.columns))
        )
        return a, b


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line; the size that it leaves out comes from mode and device."""
    parser = argparse.ArgumentParser(
        prog="run.py", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def size(text: str) -> tuple[int, int, int]:
        numbers = [int(part) for part in text.split("x")] if text.replace("x", "").isdigit() else []
        if len(numbers) not in (1, 3) or min(numbers) < 1:
            raise argparse.ArgumentTypeError(f"must be a positive number, or three as in 64x64x1024, not {text}")
        rows, columns, depth = numbers * 3 if len(numbers) == 1 else numbers
        return rows, columns, depth

    parser.add_argument("--op", choices=("gemm",), required=True, help="the operation")
    parser.add_argument("--ladder", action="store_true", help="see above")
    parser.add_argument(
        "--device", choices=("cpu", "cuda", "mps"), help="cpu is the simulator (default: a GPU, if any)"
    )
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16", "float64"), default="float32")
    parser.add_argument("--size", type=size, nargs="+", metavar="N | MxNxK", help="of the product, one or more")
    parser.add_argument("--repeat", type=int, default=10, help="measurements that a median is taken of")
    parser.add_argument("--limit", type=int, help="tilings that rung 9 is chosen from (default: all, 3 on cpu)")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="append one JSON object a line, with date and versions"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="of --ladder")
    args = parser.parse_args(arguments)
    if args.plot is not None and not args.ladder:
        parser.error("--plot draws --ladder")
    if args.repeat < 1 or (args.limit is not None and args.limit < 1):
        parser.error("--repeat and --limit must be at least 1")
    gpus = [name for name, backend in (("cuda", torch.cuda), ("mps", torch.backends.mps)) if backend.is_available()]
    args.device = args.device or (gpus or ["cpu"])[0]
    if args.limit is None and args.device == "cpu":
        args.limit = 3
    args.size = args.size or [(128, 128, 128) if args.device == "cpu" else (4096, 4096, 4096)]
    return args


def measure_time(problems: Sequence[Problem], repeat: int) -> list[dict[str, Any]]:
    """One record a problem and implementation: median milliseconds, TFLOP/s, and times PyTorch is as fast."""
    found: list[dict[str, Any]] = []
    implementations: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"ours": matmul, "PyTorch": torch.matmul}
    for problem in tqdm(problems, unit="problem", leave=False):
        operands = problem.inputs()
        times = {
            name: timing.milliseconds(functools.partial(multiply, *operands), repeat, problem.device)
            for name, multiply in implementations.items()
        }
        found += [
            {
                "size": problem.size,
                "implementation": name,
                "median_ms": ms,
                "tflops": 2e-9 * problem.multiply_adds / ms,
                "times_pytorch": ms / times["PyTorch"],
            }
            for name, ms in times.items()
        ]
    return found


def _rung_9(a: Tensor, b: Tensor, limit: int | None) -> ladder.Tiling:
    """The tiling that the tuner ranks best on the device at hand."""
    best = tuned.search(ladder_problem(a, b), a.device.type, limit).best
    return ladder.RUNGS[8].tiling if best is None else best.tiling


def measure_ladder(problem: Problem, repeat: int, limit: int | None) -> list[dict[str, Any]]:
    """One record a rung: on the simulator what it counts for each product of elements, on a GPU its speed."""
    a, b = problem.inputs()
    found = []
    for rung in tqdm(ladder.RUNGS, unit="rung", leave=False):
        tiling = _rung_9(a, b, limit) if rung.number == 9 else rung.tiling
        record: dict[str, Any] = {"rung": rung.number, "name": rung.name}
        multiply = functools.partial(ladder.multiply, rung, a, b, tiling)
        if problem.device == "cpu":
            record |= _counted(problem, multiply)
        else:
            ms = timing.milliseconds(multiply, repeat, problem.device)
            record |= {"median_ms": ms, "tflops": 2e-9 * problem.multiply_adds / ms}
        found.append(record | {"block": f"{tiling.BM}x{tiling.BN}x{tiling.BK}"})
    if problem.device != "cpu":
        ms = timing.milliseconds(lambda: torch.matmul(a, b), repeat, problem.device)
        found.append(
            {
                "rung": 0,
                "name": "PyTorch",
                "median_ms": ms,
                "tflops": 2e-9 * problem.multiply_adds / ms,
                "block": "",
            }
        )
    return found


def _counted(problem: Problem, call: Callable[[], object]) -> dict[str, float]:
    """What the caption of the table says."""
    with simulator.profile(transactions=True) as profile:
        call()
    counters, transactions, each = profile.total, profile.transactions, problem.multiply_adds
    counts = {
        "device_bytes": counters.device_bytes,
        "device_accesses": _LANES * transactions.device_accesses,
        "segments": _LANES * transactions.device_segments,
        "group_bytes": counters.threadgroup_bytes,
        "group_accesses": _LANES * transactions.threadgroup_accesses,
        "passes": _LANES * transactions.threadgroup_passes,
        "conflicts": _LANES * transactions.threadgroup_conflicts,
        "matrix_products": _MATRIX_PRODUCT * counters.matrix_products,
    }
    return {name: count / each for name, count in counts.items()} | {"barriers": counters.threadgroup_barriers}


def plot(found: Sequence[dict[str, Any]], title: str, file: Path) -> None:
    """Draws the ladder: TFLOP/s a rung, or what each rung asks of memory for a product of two elements."""
    names = [f"{record['rung']} {record['name']}" if record["rung"] else record["name"] for record in found]
    speeds = "tflops" in found[0]
    panels = (
        {"TFLOP/s": "tflops"}
        if speeds
        else {
            "device memory: bytes": "device_bytes",
            "device memory: segments of a simdgroup": "segments",
            "threadgroup memory: bytes": "group_bytes",
            "threadgroup memory: passes over the banks": "passes",
        }
    )
    figure, grid = plt.subplots(1, len(panels), figsize=(3 + 3.2 * len(panels), 4), layout="constrained", squeeze=False)
    for axes, (label, key) in zip(grid[0], panels.items(), strict=True):
        values = [record[key] for record in found]
        bars = axes.barh(names, values, color=["#fb8500" if record["rung"] else "#023047" for record in found])
        axes.bar_label(bars, [f"{value:,.3g}" if value else "none" for value in values], padding=3, fontsize=8)
        axes.invert_yaxis()
        axes.set(title=label, xscale="linear" if speeds else "log")
        axes.title.set_fontsize(9)
        axes.margins(x=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if axes is not grid[0][0]:
            axes.set_yticklabels([])
    figure.suptitle(title, fontsize=10)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(arguments)
    problems = [Problem(rows, columns, depth, args.dtype, args.device) for rows, columns, depth in args.size]
    device = {"cpu": "the simulator", "cuda": "a GPU"}.get(args.device, args.device)
    if args.device == "cuda":
        device = torch.cuda.get_device_name()
    results: list[dict[str, Any]] = []
    if args.ladder:
        for problem in problems:
            title = f"The ladder on {device}: {problem.size}, {args.dtype}"
            found = measure_ladder(problem, args.repeat, args.limit)
            if args.device == "cpu":
                columns = ("rung", "name", *_SHOWN)
                records.show(title, [{name: record[name] for name in columns} for record in found], _CAPTION)
            else:
                records.show(title, found)
            results += [{"size": problem.size, **record} for record in found]
            if args.plot is not None:
                plot(found, title, args.plot)
                print(f"Plot: {args.plot}")
    else:
        results = measure_time(problems, args.repeat)
        records.show(f"Time of matmul on {device}: {args.dtype}", results)
    if args.json is not None:
        common = {"op": args.op, "mode": "ladder" if args.ladder else "time", "dtype": args.dtype}
        records.append(args.json, [{**common, **record} for record in results], torch.device(args.device))
