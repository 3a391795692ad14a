"""Sends PyTorch's own ``scaled_dot_product_attention`` to `flash_attention`, by device, and back again.

The function is overridden where PyTorch's dispatcher looks it up, not where Python names it, so the patch reaches code
that imported the function earlier, modules of ``torch.nn``, C++ callers and ``torch.compile``. A call that the kernels
do not cover goes on to PyTorch's implementation, as if nothing were patched, and `stats` counts it with the reason.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

from ._version import __version__
from .ops.attention.api import attempt
from .ops.attention.arguments import PLAIN, Refusal, Scoring
from .ops.attention.problem import Causal

__all__ = ["DeviceStats", "Stats", "patch", "patched", "reset_stats", "stats", "unpatch"]

_DISPATCH_KEYS = {"cpu": ("AutogradCPU", "CPU"), "cuda": ("AutogradCUDA", "CUDA"), "mps": ("AutogradMPS", "MPS")}

_SDPA = torch.ops.aten.scaled_dot_product_attention.default

_TRACING_TYPES = (FakeTensor, FunctionalTensor)

# PyTorch leaves these two untyped.
_new_library: Callable[[str, str], Any] = torch.library.Library
_flash_enabled: Callable[[], bool] = torch.backends.cuda.flash_sdp_enabled


def patch(devices: Iterable[str] = ("mps",)) -> None:
    """Accelerates ``scaled_dot_product_attention`` for tensors on these devices, in the whole process.

    Callers keep PyTorch's meaning: a call gives what PyTorch gives, up to rounding, or is passed on to PyTorch. Passed
    on are a mask together with ``is_causal`` (PyTorch's own answer to that pair depends on the device), head sizes over
    576, sparse and nested tensors, tensor subclasses with their own dispatch, forward-mode differentiation and
    ``torch.func`` gradients, arguments that PyTorch refuses, and code under ``torch.nn.attention.sdpa_kernel`` without
    ``SDPBackend.FLASH_ATTENTION``. The last is also the way out for one block of code, for example where second
    derivatives are needed.

    Calling it again is harmless; devices add up. It takes effect for every thread. Functions compiled by
    ``torch.compile`` before the patch changed are compiled again at their next call (PyTorch's compiler is reset), so
    none runs with the attention of an earlier state. On PyTorch before 2.9, change the patch only while no other
    thread computes attention; newer versions have no such limit.

    For ``"cpu"``, whose tensors run on the simulator, PyTorch's fused inference path of ``nn.MultiheadAttention`` and
    ``nn.TransformerEncoderLayer`` is switched off meanwhile (``torch.backends.mha``): it would never call attention.

    Args:
        devices: any of ``"mps"``, ``"cuda"`` and ``"cpu"``.

    Raises:
        ValueError: a device is none of these.
    """
    names = _checked(devices)
    with _lock:
        _switch(_asked.union(names), _open_blocks)


def unpatch() -> None:
    """Takes back every `patch`: PyTorch's dispatch table is then what it was.

    Devices of a `patched` block that is still open stay accelerated until that block ends. Harmless when nothing is
    patched.
    """
    with _lock:
        _switch(frozenset(), _open_blocks)


@contextlib.contextmanager
def patched(devices: Iterable[str] = ("mps",)) -> Iterator[None]:
    """Like `patch`, until the block ends. Blocks nest, in any order and on several threads.

    A device is accelerated while `patch` asked for it or any block on it is open. Like `patch`, this holds for every
    thread of the process, not only for the one in the block. It can decorate a function too.

    Args:
        devices: any of ``"mps"``, ``"cuda"`` and ``"cpu"``.

    Raises:
        ValueError: a device is none of these.
    """
    names = _checked(devices)
    with _lock:
        _switch(_asked, _open_blocks + names)
    try:
        yield
    finally:
        with _lock:
            _switch(_asked, _open_blocks - names)


@dataclass(frozen=True)
class DeviceStats:
    """Attention calls on one device since the last `reset_stats`.

    Attributes:
        accelerated: calls computed by this package.
        passed_on: calls left to PyTorch.
        traced: how many of both were seen while ``torch.compile`` or ``torch.export`` traced them. A compiled graph's
            runs are not counted, and one call may be traced several times.
        reasons: why calls were passed on, with counts that add up to `passed_on`.
    """

    accelerated: int = 0
    passed_on: int = 0
    traced: int = 0
    reasons: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))

    def __str__(self) -> str:
        text = f"{self.accelerated:,} accelerated, {self.passed_on:,} passed on to PyTorch"
        if self.reasons:
            text += " (" + ", ".join(f"{count:,} {reason}" for reason, count in self.reasons.items()) + ")"
        return text + (f"; {self.traced:,} of them while tracing" if self.traced else "")


@dataclass(frozen=True)
class Stats:
    """Attention calls that went through the patch since the last `reset_stats`.

    Attributes:
        devices: the calls of each device that had any.
    """

    devices: Mapping[str, DeviceStats]

    @property
    def accelerated(self) -> int:
        """Calls computed by this package, on all devices."""
        return sum(device.accelerated for device in self.devices.values())

    @property
    def passed_on(self) -> int:
        """Calls left to PyTorch, on all devices."""
        return sum(device.passed_on for device in self.devices.values())

    @property
    def traced(self) -> int:
        """How many of both were seen by ``torch.compile`` or ``torch.export``, on all devices."""
        return sum(device.traced for device in self.devices.values())

    @property
    def reasons(self) -> Mapping[str, int]:
        """Why calls were passed on, on all devices."""
        total: Counter[str] = Counter()
        for device in self.devices.values():
            total.update(device.reasons)
        return MappingProxyType(dict(total.most_common()))

    def __str__(self) -> str:
        if not self.devices:
            return "no attention call went through the patch"
        return "\n".join(f"{name}: {device}" for name, device in self.devices.items())


def stats() -> Stats:
    """What happened to the calls of ``scaled_dot_product_attention`` on patched devices, a snapshot."""
    with _counts_lock:
        return Stats(MappingProxyType({name: counts.snapshot() for name, counts in sorted(_counts.items())}))


def reset_stats() -> None:
    """Starts counting from zero."""
    with _counts_lock:
        _counts.clear()


class _Counts:
    """Calls on one device; guarded by `_counts_lock`."""

    def __init__(self) -> None:
        self.accelerated = 0
        self.traced = 0
        self.reasons: Counter[str] = Counter()

    def snapshot(self) -> DeviceStats:
        reasons = MappingProxyType(dict(self.reasons.most_common()))
        return DeviceStats(self.accelerated, sum(reasons.values()), self.traced, reasons)


_counts_lock = threading.Lock()
_counts: dict[str, _Counts] = {}


def _count(device: str, reason: str | None) -> None:
    """Counts a call: accelerated if there is no reason to pass it on."""
    traced = torch.compiler.is_compiling()
    with _counts_lock:
        counts = _counts.get(device)
        if counts is None:
            counts = _counts[device] = _Counts()
        counts.traced += traced
        if reason is None:
            counts.accelerated += 1
        else:
            counts.reasons[reason] += 1


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """What the dispatcher calls on a patched device in place of PyTorch's function."""
    reason = _reason_to_pass_on(query, key, value, attn_mask, is_causal)
    if reason is None:
        causal = Causal.TOP_LEFT if is_causal else Causal.NONE
        scoring = Scoring(dropout_p) if dropout_p else PLAIN
        result = attempt(query, key, value, attn_mask, scale, causal, enable_gqa, scoring)
        if not isinstance(result, Refusal):
            _count(query.device.type, None)
            return result[0]
        reason = result.reason
    _count(query.device.type, reason)
    # PyTorch's function is composite: this runs it itself, so the choice among PyTorch's kernels stays with PyTorch.
    original = _SDPA.decompose(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    return cast("Tensor", original)


def _reason_to_pass_on(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, is_causal: bool
) -> str | None:
    """Why this call is PyTorch's, apart from what `attempt` refuses for every caller; None to accelerate it."""
    if not _flash_enabled():
        return "flash attention is switched off by sdpa_kernel"
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "torch.func transform"
    for operand in (query, key, value, attn_mask):
        if operand is not None and type(operand) is not Tensor and _has_own_dispatch(operand):
            return "tensor subclass with its own dispatch"
    if attn_mask is not None:
        if is_causal:
            return "attn_mask together with is_causal"
        if attn_mask.dtype not in (torch.bool, torch.float32, query.dtype):
            return "mask dtype that PyTorch refuses"
        if attn_mask.dim() < 2:
            return "mask of fewer than two dimensions, which PyTorch refuses"
    return None


def _has_own_dispatch(tensor: Tensor) -> bool:
    """Whether a subclass (``DTensor``, quantized weights) wants to see PyTorch's operators and would not know ours."""
    return type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__ and not isinstance(tensor, _TRACING_TYPES)


class _Override:
    """The registration for one device; exists while the device is patched."""

    def __init__(self, device: str) -> None:
        self._keys = _DISPATCH_KEYS[device]
        self._fused_modules = device == "cpu" and torch.backends.mha.get_fastpath_enabled()
        self._library = _new_library("aten", "IMPL")
        try:
            for key in self._keys:
                self._library.impl("scaled_dot_product_attention", _attention, key)
        except BaseException:
            self._library._destroy()
            raise
        if self._fused_modules:
            torch.backends.mha.set_fastpath_enabled(False)

    def remove(self) -> None:
        if hasattr(torch.library, "get_kernel"):
            _retired.extend(torch.library.get_kernel(_SDPA, key) for key in self._keys)
        self._library._destroy()
        if self._fused_modules:
            torch.backends.mha.set_fastpath_enabled(True)


_retired: deque[Any] = deque(maxlen=1024)
"""Kernels taken out of the dispatcher. It frees a kernel on removal even when another thread is on its way into it;
holding on to the last ones keeps such threads safe."""

_lock = threading.RLock()
_asked: frozenset[str] = frozenset()
_open_blocks: Counter[str] = Counter()
_overrides: dict[str, _Override] = {}


def _checked(devices: Iterable[str]) -> Counter[str]:
    names = {devices} if isinstance(devices, str) else set(devices)
    for name in names:
        if name not in _DISPATCH_KEYS:
            raise ValueError(f"devices holds {name!r}; accepted are {', '.join(map(repr, sorted(_DISPATCH_KEYS)))}")
    return Counter(names)


def _switch(asked: frozenset[str], open_blocks: Counter[str]) -> None:
    """Makes these the devices that are asked for, and the dispatcher follow; all or nothing. `_lock` is held."""
    global _asked, _open_blocks
    wanted = asked.union(open_blocks)
    added: dict[str, _Override] = {}
    try:
        for device in wanted - _overrides.keys():
            added[device] = _Override(device)
    except BaseException:
        for override in added.values():
            override.remove()
        raise
    _asked, _open_blocks = asked, open_blocks
    removed = _overrides.keys() - wanted
    for device in removed:
        _overrides.pop(device).remove()
    _overrides.update(added)
    if added or removed:
        _forget_compiled_code()


def _forget_compiled_code() -> None:
    """Makes PyTorch's compiler look at attention afresh, in this process and in its caches on disk.

    The compiler does not know that the dispatcher changed: it would reuse graphs, and the Python dispatcher it traces
    with would reuse look-ups, of the state before.
    """
    _SDPA._dispatch_cache.clear()
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
    # A setting of the thread: one that only ever compiles, and never patches, shares cached graphs between both states.
    config: Any = getattr(torch.compiler, "config", None)
    if config is not None and hasattr(config, "cache_key_tag"):
        user_tag = config.cache_key_tag.partition(_TAG_MARK)[0]
        devices = ",".join(sorted(_overrides))
        config.cache_key_tag = user_tag + (f"{_TAG_MARK}{__version__}:{devices}" if devices else "")


_TAG_MARK = "+mps_flash_attn:"
