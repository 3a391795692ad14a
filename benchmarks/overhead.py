"""What a call of ``flash_attention`` costs in Python, beside an empty custom operator called in the same way."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from attention import Problem
from torch import Tensor
from tqdm import tqdm

import mps_flash_attn
from mps_flash_attn import launch

__all__ = ["measure"]

CALLS_PER_ROUND = 200


@torch.library.custom_op("mps_flash_attn_benchmark::empty", mutates_args=())
def _empty(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, scale: float, causal: int
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(query), query.new_empty(query.shape[:-1], dtype=torch.float32)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:3], *output)


def _no_backward(ctx: Any, *gradients: Tensor) -> tuple[None, ...]:
    raise NotImplementedError("the empty operator is called forward only")


_empty.register_autograd(_no_backward, setup_context=_save)


def _microseconds(calls: Iterable[Callable[[], object]]) -> float:
    """Of each, on average."""
    calls = list(calls)
    start = time.perf_counter()
    for call in calls:
        call()
    return 1e6 * (time.perf_counter() - start) / len(calls)


def _generation(problem: Problem, rounds: int) -> Iterator[tuple[float, float]]:
    """Microseconds of a call with one query over so many keys for the first time, and of the same call once more."""
    query, key, value = (x.detach() for x in problem.inputs())
    most = problem.length + rounds * CALLS_PER_ROUND
    key, value = (x[:, :, :1].expand(-1, -1, most, -1).contiguous() for x in (key, value))
    for first in range(problem.length + 1, most + 1, CALLS_PER_ROUND):
        calls = [
            functools.partial(mps_flash_attn.flash_attention, query[:, :, :1], key[:, :, :keys], value[:, :, :keys])
            for keys in range(first, first + CALLS_PER_ROUND)
        ]
        yield _microseconds(calls), _microseconds(calls)


def measure(problems: Sequence[Problem], repeat: int) -> list[dict[str, Any]]:
    """One record a problem: microseconds a call, medians of ``repeat`` rounds.

    Launches return before their kernel is called, so what remains is Python and PyTorch's dispatcher. Both operators
    allocate an output and a log-sum-exp, and both save their inputs for a backward pass if the problem has one.
    ``difference_us`` is what ours costs beyond an empty one. A call of other lengths than any before is planned first:
    ``new_length_us`` is one query over a key more than the call before had, as when text is generated, and
    ``known_length_us`` the same calls once more.
    """
    records = []
    for problem in tqdm(problems, unit="problem", leave=False):
        query, key, value = problem.inputs()

        def ours(q: Tensor = query, k: Tensor = key, v: Tensor = value, causal: bool = problem.causal) -> object:
            return mps_flash_attn.flash_attention(q, k, v, is_causal=causal)

        def empty(q: Tensor = query, k: Tensor = key, v: Tensor = value, causal: bool = problem.causal) -> object:
            return torch.ops.mps_flash_attn_benchmark.empty(q, k, v, None, 1.0, int(causal))

        with launch.dry_run():
            rounds = [
                (_microseconds([ours] * CALLS_PER_ROUND), _microseconds([empty] * CALLS_PER_ROUND), *generation)
                for generation in _generation(problem, repeat + 1)
            ][1:]
        ours_us, empty_us, new_us, known_us = (statistics.median(times) for times in zip(*rounds, strict=True))
        records.append(
            {
                "length": problem.length,
                "head_dim": problem.head_dim,
                "requires_grad": str(problem.backward),
                "flash_attention_us": ours_us,
                "empty_op_us": empty_us,
                "difference_us": ours_us - empty_us,
                "new_length_us": new_us,
                "known_length_us": known_us,
            }
        )
    return records
