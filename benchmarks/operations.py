"""Norms, softmax, cross entropy and elementwise operations: ours beside PyTorch's, or beside the bytes they need."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gpu
import records
import timing
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

import mps_flash_attn.functional as ours
from mps_flash_attn.runtime import simulator

__all__ = ["OPERATIONS", "main", "measure", "parse_arguments"]

DESCRIPTION = """\
Measure operations that move each element once or twice: forward and, with --backward, their gradients apart.

On a GPU, time: ours beside PyTorch's in this one run, medians of --repeat measurements after a warm-up with the very
same call, and the bytes a second that the floor stands for. On --device cpu, what the simulator counts, exact and the
same on every run: launches, bytes of device memory that threads ask for, how many times the floor that is, barriers.

The floor is what has to be read and written once: tensors of the size of the input. Others are small and left out. Of
them every thread of a row may ask for the same bytes, which a GPU has in its caches after the first.
"""

EPILOG = """\
examples:
  python benchmarks/run.py --op norm --size 64x768 --backward
  python benchmarks/run.py --op softmax --device cuda --dtype float16 --size 16384x4096 --json out/operations.jsonl
"""

_Function = Callable[..., Tensor]
#: Kinds of arguments: rows and columns, one number a column, one class a row.
_FULL, _ROW, _CLASS = "full", "row", "class"


@dataclass(frozen=True)
class Entry:
    """One function, ours and PyTorch's, on rows and columns.

    Attributes:
        arguments: the kind of each.
        moved, moved_backward: full tensors that the forward and the backward pass have to read or write; 0 where there
            is no work.
    """

    ours: _Function
    theirs: _Function
    arguments: tuple[str, ...]
    moved: int
    moved_backward: int

    def inputs(self, problem: Problem) -> list[Tensor]:
        """Random tensors; those of floating-point numbers require gradients."""
        generator, made = torch.Generator().manual_seed(0), []
        for kind in self.arguments:
            if kind == _CLASS:
                x = torch.randint(problem.columns, (problem.rows,), generator=generator)
            else:
                shape = (problem.columns,) if kind == _ROW else (problem.rows, problem.columns)
                x = torch.randn(shape, generator=generator).to(getattr(torch, problem.dtype))
            made.append(x.to(problem.device).requires_grad_(kind != _CLASS))
        return made


@dataclass(frozen=True)
class Problem:
    """``[rows, columns]`` in a dtype, by name."""

    rows: int
    columns: int
    dtype: str
    device: str

    def floor(self, moved: int) -> int:
        """Bytes of that many full tensors."""
        return moved * self.rows * self.columns * getattr(torch, self.dtype).itemsize


def _normalised(function: _Function) -> _Function:
    return lambda x, *parameters: function(x, x.shape[-1:], *parameters)


def _add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x + residual, x.shape[-1:], weight)


#: What each ``--op`` measures.
OPERATIONS: Mapping[str, Mapping[str, Entry]] = {
    "norm": {
        "layer_norm": Entry(_normalised(ours.layer_norm), _normalised(F.layer_norm), (_FULL, _ROW, _ROW), 2, 3),
        "rms_norm": Entry(_normalised(ours.rms_norm), _normalised(F.rms_norm), (_FULL, _ROW), 2, 3),
        "add_rms_norm": Entry(
            lambda x, residual, weight: ours.add_rms_norm(x, residual, x.shape[-1:], weight)[0],
            _add_rms_norm,
            (_FULL, _FULL, _ROW),
            4,
            3,
        ),
    },
    "softmax": {
        "softmax": Entry(lambda x: ours.softmax(x, -1), lambda x: torch.softmax(x, -1), (_FULL,), 2, 3),
        "log_softmax": Entry(lambda x: ours.log_softmax(x, -1), lambda x: torch.log_softmax(x, -1), (_FULL,), 2, 3),
    },
    "cross_entropy": {
        "cross_entropy": Entry(ours.cross_entropy, F.cross_entropy, (_FULL, _CLASS), 1, 2),
        "cross_entropy of probabilities": Entry(ours.cross_entropy, F.cross_entropy, (_FULL, _FULL), 2, 4),
    },
    "elementwise": {
        "add": Entry(ours.add, torch.add, (_FULL, _FULL), 3, 0),
        "mul": Entry(ours.mul, torch.mul, (_FULL, _FULL), 3, 5),
        "gelu": Entry(ours.gelu, F.gelu, (_FULL,), 2, 3),
        "swiglu": Entry(ours.swiglu, lambda gate, up: F.silu(gate) * up, (_FULL, _FULL), 3, 5),
    },
}


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line; the size that it leaves out comes from the device."""
    parser = argparse.ArgumentParser(
        prog="run.py", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def size(text: str) -> tuple[int, int]:
        rows, _, columns = text.partition("x")
        if not (rows.isdigit() and columns.isdigit() and int(rows) and int(columns)):
            raise argparse.ArgumentTypeError(f"must be two positive numbers as in 64x768, not {text}")
        return int(rows), int(columns)

    parser.add_argument("--op", choices=tuple(OPERATIONS), required=True, help="the operations")
    parser.add_argument(
        "--device", choices=("cpu", "cuda", "mps"), help="cpu is the simulator (default: a GPU, if any)"
    )
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    parser.add_argument("--size", type=size, nargs="+", metavar="ROWSxCOLUMNS", help="one or more")
    parser.add_argument("--backward", action="store_true", help="gradients too")
    parser.add_argument("--repeat", type=int, default=10, help="measurements that a median is taken of")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="append one JSON object a line, with date and versions"
    )
    args = parser.parse_args(arguments)
    if args.repeat < 1:
        parser.error("--repeat must be at least 1")
    gpus = [name for name, backend in (("cuda", torch.cuda), ("mps", torch.backends.mps)) if backend.is_available()]
    args.device = args.device or (gpus or ["cpu"])[0]
    args.size = args.size or [(64, 768) if args.device == "cpu" else (16384, 4096)]
    return args


def _passes(
    entry: Entry, function: _Function, inputs: Sequence[Tensor], backward: bool
) -> dict[str, tuple[Callable[[], object], int]]:
    """Of each pass the call, and the full tensors that it has to move."""
    passes: dict[str, tuple[Callable[[], object], int]] = {
        "forward": (functools.partial(function, *(x.detach() for x in inputs)), entry.moved)
    }
    if backward and entry.moved_backward:
        out = function(*inputs)
        wanted = [x for x in inputs if x.requires_grad]
        gradients = functools.partial(torch.autograd.grad, out, wanted, torch.randn_like(out), retain_graph=True)
        passes["backward"] = gradients, entry.moved_backward
    return passes


def measure(op: str, problem: Problem, repeat: int, backward: bool) -> list[dict[str, Any]]:
    """One record a function and pass: on the simulator what it counts, on a GPU the times of ours and PyTorch's."""
    found: list[dict[str, Any]] = []
    for name, entry in tqdm(OPERATIONS[op].items(), unit="function", leave=False):
        inputs = entry.inputs(problem)
        every = [_passes(entry, function, inputs, backward) for function in (entry.ours, entry.theirs)]
        for direction, (call, moved) in every[0].items():
            record = {"function": name, "size": f"{problem.rows} x {problem.columns}", "pass": direction}
            floor = problem.floor(moved)
            if problem.device == "cpu":
                found.append(record | _counted(call, floor))
            else:
                their_call, _ = every[1][direction]
                found.append(record | _timed(call, their_call, floor, problem.device, repeat))
    return found


def _counted(call: Callable[[], object], floor: int) -> dict[str, Any]:
    with simulator.profile() as profile:
        call()
    counters = profile.total
    return {
        "launches": len(profile.launches),
        "device_bytes": counters.device_bytes,
        "floor_bytes": floor,
        "times_floor": counters.device_bytes / floor,
        "barriers": counters.threadgroup_barriers,
    }


def _timed(
    call: Callable[[], object], their_call: Callable[[], object], floor: int, device: str, repeat: int
) -> dict[str, Any]:
    clock = gpu.median_ms if device == "cuda" else functools.partial(timing.milliseconds, device=device)
    our_ms, their_ms = clock(call, repeat), clock(their_call, repeat)
    return {
        "ours_ms": our_ms,
        "pytorch_ms": their_ms,
        "ours_is_faster": their_ms / our_ms,
        "floor_gb_per_s": floor / our_ms / 1e6,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(arguments)
    device = torch.cuda.get_device_name() if args.device == "cuda" else args.device
    device = "the simulator" if args.device == "cpu" else device
    problems = [Problem(rows, columns, args.dtype, args.device) for rows, columns in args.size]
    results = [record for problem in problems for record in measure(args.op, problem, args.repeat, args.backward)]
    records.show(f"{args.op} on {device}: {args.dtype}", results)
    if args.json is not None:
        common = {"op": args.op, "mode": "counters" if args.device == "cpu" else "time", "dtype": args.dtype}
        records.append(args.json, [{**common, **record} for record in results], torch.device(args.device))
