"""Tensors of more than 2^31 elements: views over memory of which few pages are ever touched, so no test needs it."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from mps_flash_attn import functional, launch, source
from mps_flash_attn.ops import calls
from mps_flash_attn.ops.attention import function
from mps_flash_attn.ops.attention.function import attention_backward, attention_forward
from mps_flash_attn.ops.attention.problem import Causal

#: Elements between two neighbours along one dimension. As an int it is negative.
FAR = 2**31 + 2**20
#: More elements than are near.
ROOM = 2**14
DTYPE = torch.float16


def empty(shape: Sequence[int], dim: int) -> Tensor:
    """Zeros, contiguous but for ``dim``, of at most two elements, which are far apart.

    Its memory is not there until it is written to. It begins in the middle of that, so that an address that has lost
    its upper bits stays inside and meets zeros.
    """
    assert shape[dim] <= 2
    strides = list(torch.empty(shape, device="meta").stride())
    strides[dim] = FAR
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
    memory = mmap.mmap(-1, 2 * FAR * DTYPE.itemsize, flags=flags)
    return torch.frombuffer(memory, dtype=DTYPE).as_strided(shape, strides, FAR - ROOM)


def far(tensor: Tensor, dim: int) -> Tensor:
    """A copy in such memory."""
    return empty(tensor.shape, dim).copy_(tensor)


@pytest.fixture
def far_results(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Has attention put its results, and the gradients of its operands, far apart too, along a dimension."""
    empty_like = launch.empty_like

    def put(dim: int) -> None:
        def like(tensor: Tensor, *others: Any) -> Tensor:
            return empty(tensor.shape, dim) if tensor.dim() == 4 else empty_like(tensor, *others)

        monkeypatch.setattr(launch, "empty_like", like)
        monkeypatch.setattr(function, "empty_output", lambda query, columns: like(query))
        calls.forget()

    yield put
    calls.forget()


def attend(*operands: Tensor) -> list[Tensor]:
    """``out lse dq dk dv dmask`` of ``query key value attn_mask grad_out``."""
    query, key, value, mask, grad_out = operands
    out, lse = attention_forward(query, key, value, mask, 0.25, Causal.TOP_LEFT)
    gradients = attention_backward(grad_out, None, query, key, value, mask, out, lse, True, 0.25, Causal.TOP_LEFT)
    return [out, lse, *gradients[:4]]


def operands(dim: int) -> list[Tensor]:
    """Those of `attend`, near, with two elements along ``dim``, in shapes that have edges of tiles elsewhere."""
    batch, heads, length, columns = (2 if n == dim else size for n, size in enumerate((1, 2, 19, 16)))
    keys = 2 if dim == 2 else 21
    shapes = [(batch, heads, n, columns) for n in (length, keys, keys)]
    shapes += [(batch, heads, length, keys), (batch, heads, length, columns)]
    return [torch.randn(shape).to(DTYPE) for shape in shapes]


@pytest.mark.parametrize("dim", [0, 1, 2], ids=["batches", "heads", "rows"])
def test_attention(dim: int, far_results: Callable[[int], None], seed: int) -> None:
    near = operands(dim)
    expected = attend(*near)
    far_results(dim)
    found = attend(*(far(x, dim) for x in near))
    assert all(x.stride(dim) == FAR for x in (found[0], *found[2:5]))
    for name, x, y in zip(("out", "lse", "dq", "dk", "dv", "dmask"), found, expected, strict=True):
        assert torch.equal(x, y), name


@pytest.mark.parametrize("dim", [0, 1, 2, 3], ids=["batches", "heads", "queries", "keys"])
def test_a_mask_alone(dim: int, seed: int) -> None:
    *near, grad_out = operands(2 if dim == 3 else dim)
    assert torch.equal(attend(*near[:3], far(near[3], dim), grad_out)[0], attend(*near, grad_out)[0])


def lose_upper_bits(monkeypatch: pytest.MonkeyPatch, declaration: str) -> None:
    """Makes the long of a declaration in attention's kernels an int."""
    assert declaration.startswith("long ")
    specialise = source.specialise

    def fault(path: str, defines: tuple[source.Define, ...]) -> str:
        text = specialise(path, defines)
        assert declaration in text
        return text.replace(declaration, declaration.replace("long", "int", 1))

    monkeypatch.setattr(source, "specialise", fault)


@pytest.mark.parametrize(
    ("declaration", "dim"),
    [
        ("long query_offset(", 0),
        ("long key_offset(", 1),
        ("long row_stride, column_stride;", 2),
        ("long row_stride, int rows, int columns", 2),
    ],
)
def test_an_int_is_noticed(
    declaration: str,
    dim: int,
    monkeypatch: pytest.MonkeyPatch,
    far_results: Callable[[int], None],
    seed: int,
) -> None:
    near = operands(dim)[:4]
    expected, _ = attention_forward(*near, 0.25, Causal.TOP_LEFT)
    lose_upper_bits(monkeypatch, declaration)
    far_results(dim)
    found, _ = attention_forward(*(far(x, dim) for x in near), 0.25, Causal.TOP_LEFT)
    assert not torch.equal(found, expected)


#: Each takes operands of these shapes, of which two rows or matrices lie far apart, and is differentiable in them.
FUNCTIONS: dict[str, tuple[Callable[..., Tensor], list[tuple[int, ...]]]] = {
    "softmax": (lambda x: functional.softmax(x, -1), [(2, 40)]),
    "softmax of columns": (lambda x: functional.softmax(x, 0), [(2, 40)]),
    "cross_entropy": (lambda x: functional.cross_entropy(x, torch.tensor([3, 1])), [(2, 40)]),
    "layer_norm": (lambda x: functional.layer_norm(x, (40,)), [(2, 40)]),
    "rms_norm": (lambda x: functional.rms_norm(x, (40,)), [(2, 40)]),
    "add_rms_norm": (lambda x, y: functional.add_rms_norm(x, y, (40,))[0], [(2, 40), (2, 40)]),
    "gelu": (functional.gelu, [(2, 40)]),
    "add": (functional.add, [(2, 40), (2, 40)]),
    "swiglu": (functional.swiglu, [(2, 40), (2, 40)]),
    "sum": (lambda x: functional.sum(x, 0), [(2, 40)]),
    "amax": (lambda x: functional.amax(x, 1), [(2, 40)]),
    "rope": (lambda x: functional.rope(x), [(2, 5, 16)]),
    "matmul of batches": (functional.matmul, [(2, 20, 24), (2, 24, 20)]),
    "matmul of rows": (lambda x, y: functional.matmul(x, y.T), [(2, 24), (2, 24)]),
    "embedding": (lambda weight: functional.embedding(torch.tensor([1, 0, 1]), weight), [(2, 40)]),
    "merge_attention": (
        lambda x, y: functional.merge_attention(x, torch.zeros(2, 5), y, torch.ones(2, 5))[0],
        [(2, 5, 16), (2, 5, 16)],
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_other_functions(name: str, seed: int) -> None:
    apply, shapes = FUNCTIONS[name]
    near = [torch.randn(shape).to(DTYPE) for shape in shapes]
    results: list[tuple[Tensor, ...]] = []
    gradient = None
    for operands in (near, [far(x, 0) for x in near]):
        tensors = [x.requires_grad_() for x in operands]
        out = apply(*tensors)
        gradient = torch.randn_like(out) if gradient is None else gradient
        results.append((out, *torch.autograd.grad(out, tensors, gradient)))
    for x, y in zip(*results, strict=True):
        assert torch.equal(x, y)
