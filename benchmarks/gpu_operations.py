"""Operations other than attention on an NVIDIA GPU, ours and PyTorch's in one run."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import records
import torch
from gpu import median_ms
from torch import Tensor
from torch.nn import functional

import mps_flash_attn.functional as ours

__all__ = ["measure"]

_ROWS, _COLUMNS = 16384, 4096


def _random(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, device="cuda", dtype=dtype)


def _calls() -> Iterator[tuple[str, torch.dtype, Callable[[], object], Callable[[], object]]]:
    """What is measured: a name, a dtype, our call and PyTorch's."""
    half = torch.float16
    x, weight, bias = (_random(*shape, dtype=half) for shape in ((_ROWS, _COLUMNS), (_COLUMNS,), (_COLUMNS,)))
    yield "softmax 16,384 x 4,096", half, lambda: ours.softmax(x, -1), lambda: torch.softmax(x, -1)
    yield (
        "layer_norm 16,384 x 4,096",
        half,
        lambda: ours.layer_norm(x, (_COLUMNS,), weight, bias),
        lambda: functional.layer_norm(x, (_COLUMNS,), weight, bias),
    )
    for size, dtype in ((4096, torch.float32), (8192, half)):
        a, b = (_random(size, size, dtype=dtype) for _ in range(2))
        yield f"matmul {size:,} cubed", dtype, partial(ours.matmul, a, b), partial(torch.matmul, a, b)


def measure(repeat: int) -> list[dict[str, Any]]:
    """One record an operation: milliseconds of both, and times ours is as fast. cuBLAS may not use TF32."""
    torch.backends.cuda.matmul.allow_tf32 = False
    results: list[dict[str, Any]] = []
    for name, dtype, our_call, their_call in _calls():
        our_ms, their_ms = median_ms(our_call, repeat), median_ms(their_call, repeat)
        results.append(
            {
                "operation": name,
                "dtype": str(dtype).removeprefix("torch."),
                "ours_ms": our_ms,
                "pytorch_ms": their_ms,
                "ours_is_faster": their_ms / our_ms,
            }
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=15, help="measurements that a median is taken of")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append one JSON object a line")
    args = parser.parse_args()
    results = measure(args.repeat)
    records.show(f"Operations on {torch.cuda.get_device_name()}", results)
    if args.json is not None:
        records.append(args.json, results, torch.device("cuda"))


if __name__ == "__main__":
    main()
