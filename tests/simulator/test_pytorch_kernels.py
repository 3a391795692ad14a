"""Attention kernels that PyTorch ships for Apple GPUs, run unedited on the simulator and held against the CPU.

They are known to work on the hardware, so they show that the simulator does what the hardware does.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from baselines import PREFILL_HEAD_SIZES, pytorch_prefill
from torch import Tensor

from mps_flash_attn.runtime.simulator import ShaderLibrary, compile_shader
from tests.tolerance import assert_accurate

HEADERS = Path(torch.__file__).parent / "include" / "ATen" / "native" / "mps" / "kernels"
DTYPES = {"float": torch.float32, "half": torch.float16, "bfloat": torch.bfloat16}


def library(header: str, prologue: str) -> ShaderLibrary:
    """Compiles one of PyTorch's headers as its own .metal files include them."""
    if not (HEADERS / header).is_file():
        pytest.skip(f"PyTorch {torch.__version__} ships no {header}")
    return compile_shader(
        f"#include <metal_stdlib>\n{prologue}\nusing namespace metal;\n#include <ATen/native/mps/kernels/{header}>\n"
    )


@functools.cache
def decode_library() -> ShaderLibrary:
    return library("DecodeAttention.h", "#include <metal_simdgroup>\n#include <c10/metal/common.h>")


@dataclass(frozen=True)
class Problem:
    """Inputs of attention: query [B, H, Lq, D], key and value [B, Hkv, Lk, D], mask [B, H, Lq, Lk] or none."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    is_causal: bool

    @staticmethod
    def random(
        dtype: torch.dtype,
        *,
        batch: int = 1,
        heads: int = 2,
        key_heads: int = 2,
        queries: int,
        keys: int,
        size: int,
        mask: str = "none",
        is_causal: bool = False,
    ) -> Problem:
        shape = (batch, heads, queries, keys)
        masks = {"none": None, "bool": torch.rand(shape) < 0.7, "float": torch.randn(shape).to(dtype)}
        attn_mask = masks[mask]
        if mask == "bool":
            assert attn_mask is not None
            attn_mask[..., 0] = True  # every row sees a key
        return Problem(
            torch.randn(batch, heads, queries, size).to(dtype),
            torch.randn(batch, key_heads, keys, size).to(dtype),
            torch.randn(batch, key_heads, keys, size).to(dtype),
            attn_mask,
            is_causal,
        )

    def check(self, output: Tensor) -> None:
        """Holds an output against PyTorch's own in the same dtype, both against float64."""

        def attention(dtype: torch.dtype) -> Tensor:
            mask = self.mask if self.mask is None or self.mask.dtype == torch.bool else self.mask.to(dtype)
            return F.scaled_dot_product_attention(
                self.query.to(dtype),
                self.key.to(dtype),
                self.value.to(dtype),
                mask,
                is_causal=self.is_causal,
                enable_gqa=True,
            )

        assert_accurate("output", output, attention(output.dtype), attention(torch.float64))


def words(values: list[int]) -> Tensor:
    """A struct of 32-bit integers."""
    return torch.tensor(values, dtype=torch.int32)


def prefill(problem: Problem) -> Tensor:
    """Runs ``prefill_attention`` with the tile sizes that it is instantiated for."""
    if problem.query.shape[-1] not in PREFILL_HEAD_SIZES:
        pytest.skip(f"PyTorch {torch.__version__} ships no such kernel")
    return pytorch_prefill(
        problem.query, problem.key, problem.value, is_causal=problem.is_causal, attn_mask=problem.mask
    )


def decode(problem: Problem, *, passes: int) -> Tensor:
    """Runs ``sdpa_vector``, or its two halves that share out the keys over 32 threadgroups."""
    query, key, value, mask = problem.query, problem.key, problem.value, problem.mask
    batch, heads, queries, size = query.shape
    dtype = {torch.float32: "float", torch.float16: "half", torch.bfloat16: "bfloat"}[query.dtype]
    suffix = "_masknone" if mask is None else "_maskbool" if mask.dtype == torch.bool else f"_mask{dtype}"
    suffix += "_causal" if problem.is_causal else ""
    output = torch.full_like(query, float("nan"))
    mask_strides = [mask.stride(3), mask.stride(2), mask.stride(1), mask.stride(0)] if mask is not None else [0] * 4
    constants = (
        words([heads // key.shape[1]]),
        words([key.shape[2]]),
        words([tensor.stride(1) for tensor in (query, key, value)] + [0]),
        words([tensor.stride(2) for tensor in (query, key, value)] + [0]),
        1 / math.sqrt(size),
        query if mask is None else mask,
        words(mask_strides),
        words([tensor.stride(0) for tensor in (query, key, value)] + [heads]),
    )
    lib: Any = decode_library()
    if passes == 1:
        kernel = getattr(lib, f"sdpa_vector_{dtype}_{size}_{size}{suffix}")
        grid = (batch * heads * 1024, queries, 1)
        kernel(query, key, value, output, *constants, threads=grid, group_size=(1024, 1, 1))
        return output
    partial = query.new_full((batch, heads, queries, 32, size), float("nan"))
    sums, maxima = torch.full((2, batch, heads, queries, 32), float("nan"))
    getattr(lib, f"sdpa_vector_2pass_1_{dtype}_{size}_{size}{suffix}")(
        *(query, key, value, partial, sums, maxima),
        *constants,
        threads=(batch * heads * 256, queries, 32),
        group_size=(256, 1, 1),
    )
    getattr(lib, f"sdpa_vector_2pass_2_{dtype}_{size}")(
        *(partial, sums, maxima, output), threads=(batch * heads * 1024, queries, 1), group_size=(1024, 1, 1)
    )
    return output


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [32, 64, 72, 80, 96, 128, 256])
def test_prefill_head_sizes(dtype: str, size: int, seed: int) -> None:
    problem = Problem.random(DTYPES[dtype], queries=45, keys=67, size=size)
    problem.check(prefill(problem))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (32, 32), (33, 31), (77, 130)])
@pytest.mark.parametrize("mask", ["none", "causal", "bool", "float"])
def test_prefill_lengths_and_masks(dtype: str, queries: int, keys: int, mask: str, seed: int) -> None:
    problem = Problem.random(
        DTYPES[dtype],
        batch=2,
        heads=4,
        key_heads=2,
        queries=queries,
        keys=keys,
        size=64,
        mask="none" if mask == "causal" else mask,
        is_causal=mask == "causal",
    )
    problem.check(prefill(problem))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("size", [64, 96, 128, 256])
def test_decode_head_sizes(dtype: str, passes: int, size: int, seed: int) -> None:
    problem = Problem.random(DTYPES[dtype], heads=4, key_heads=2, queries=1, keys=133, size=size)
    problem.check(decode(problem, passes=passes))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("mask", ["none", "causal", "bool", "float"])
def test_decode_masks(dtype: str, passes: int, mask: str, seed: int) -> None:
    is_causal = mask == "causal"
    problem = Problem.random(
        DTYPES[dtype], batch=2, queries=5, keys=300, size=64, mask="none" if is_causal else mask, is_causal=is_causal
    )
    problem.check(decode(problem, passes=passes))
