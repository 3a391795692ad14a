"""`patch`, `unpatch`, `patched`: what is sent to the kernels, what is left to PyTorch, and that all is put back."""

from __future__ import annotations

import contextlib
import copy
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as imported_before_the_patch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from mps_flash_attn import flash_attention, patch, patched, reset_stats, stats, unpatch

D = 8
CPU = ("cpu",)
OPERATOR = "aten::scaled_dot_product_attention"
KERNEL = "mps_flash_attn.attention_forward.default"


def dispatch_table() -> tuple[str, str]:
    return torch._C._dispatch_dump(OPERATOR), torch._C._dispatch_dump_table(OPERATOR)


UNPATCHED = dispatch_table()


class Operators(TorchDispatchMode):
    """Records which operators run in its block."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def start_and_end_unpatched() -> Iterator[None]:
    reset_stats()
    assert dispatch_table() == UNPATCHED
    yield
    unpatch()
    reset_stats()
    assert dispatch_table() == UNPATCHED
    assert torch.backends.mha.get_fastpath_enabled()


def qkv(*, requires_grad: bool = False, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = torch.randn(3, 2, 4, 7, D, dtype=dtype).unbind()
    return query.requires_grad_(requires_grad), key.requires_grad_(requires_grad), value.requires_grad_(requires_grad)


def counts() -> tuple[int, dict[str, int]]:
    seen = stats()
    return seen.accelerated, dict(seen.reasons)


def close(actual: Tensor, expected: Tensor, bound: float = 1e-5) -> bool:
    return bool((actual - expected).abs().max() <= bound)


# --- what is accelerated ---


ACCELERATED: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "plain": lambda q, k, v: F.scaled_dot_product_attention(q, k, v),
    "imported before": lambda q, k, v: imported_before_the_patch(q, k, v),
    "operator": lambda q, k, v: torch.ops.aten.scaled_dot_product_attention(q, k, v),
    "causal": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    "causal, more keys": lambda q, k, v: F.scaled_dot_product_attention(q[:, :, :4], k, v, is_causal=True),
    "scale": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.2),
    "boolean mask": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, torch.eye(7, dtype=torch.bool)),
    "additive mask": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, torch.arange(7.0).expand(7, 7)),
    "rows without keys": lambda q, k, v: F.scaled_dot_product_attention(
        q, k, v, torch.ones(7, 7, dtype=torch.bool).tril(-1)
    ),
    "grouped heads": lambda q, k, v: F.scaled_dot_product_attention(q, k[:, :2], v[:, :2], enable_gqa=True),
    "three dimensions": lambda q, k, v: F.scaled_dot_product_attention(q[0], k[0], v[0]),
    "five dimensions": lambda q, k, v: F.scaled_dot_product_attention(q[None], k[None], v[None]),
    "half": lambda q, k, v: F.scaled_dot_product_attention(q.half(), k.half(), v.half()).float(),
}


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("name", ACCELERATED)
def test_accelerated_calls_give_what_pytorch_gives(seed: int, name: str, requires_grad: bool) -> None:
    call = ACCELERATED[name]
    bound = 1e-2 if name == "half" else 1e-5
    ours, theirs = qkv(requires_grad=requires_grad), qkv()
    theirs = tuple(x.detach().clone().requires_grad_(requires_grad) for x in ours)  # type: ignore[assignment]
    expected = call(*theirs)
    with patched(CPU):
        actual = call(*ours)
        if requires_grad:
            actual.square().sum().backward()
    assert counts() == (1, {})
    assert close(actual, expected, bound)
    if requires_grad:
        expected.square().sum().backward()
        assert all(close(a.grad, b.grad, 10 * bound) for a, b in zip(ours, theirs, strict=True))  # type: ignore[arg-type]


def test_inference_mode_no_grad_and_autocast(seed: int) -> None:
    query, key, value = qkv()
    with patched(CPU):
        with torch.inference_mode():
            F.scaled_dot_product_attention(query, key, value)
            F.scaled_dot_product_attention(query.clone(), key.clone(), value.clone())
        with torch.no_grad():
            F.scaled_dot_product_attention(*qkv(requires_grad=True))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert F.scaled_dot_product_attention(query, key, value).dtype == torch.bfloat16
            assert flash_attention(query, key, value).dtype == torch.bfloat16
    assert counts() == (4, {})


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("gradients", [True, False])
def test_multihead_attention(seed: int, training: bool, gradients: bool) -> None:
    module = nn.MultiheadAttention(2 * D, 2, batch_first=True).train(training)
    x = torch.randn(3, 7, 2 * D)
    padding = torch.zeros(3, 7, dtype=torch.bool)
    padding[:, 5:] = True

    def run() -> list[Tensor]:
        return [
            module(x, x, x, need_weights=False)[0],
            module(x, x, x, need_weights=False, key_padding_mask=padding)[0],
            copy.deepcopy(module)(x, x, x, need_weights=False)[0],
        ]

    with torch.set_grad_enabled(gradients):
        expected = run()
        with patched(CPU):
            actual = run()
    assert counts() == (3, {})
    assert all(close(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize("training", [True, False])
def test_transformer_encoder(seed: int, training: bool) -> None:
    layer = nn.TransformerEncoderLayer(2 * D, 2, 16, dropout=0.0, batch_first=True)
    module = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False).train(training)
    x = torch.randn(3, 7, 2 * D)
    mask = nn.Transformer.generate_square_subsequent_mask(7)
    with torch.set_grad_enabled(training):
        expected = module(x, mask=mask)
        with patched(CPU):
            actual = module(x, mask=mask)
    assert close(actual, expected)
    assert stats().accelerated + stats().passed_on == 2


def test_patched_only_while_pytorchs_fused_modules_are_off() -> None:
    with patched(CPU):
        assert not torch.backends.mha.get_fastpath_enabled()
        with patched(("mps", "cpu")):
            assert not torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with patched(CPU):
            pass
        assert not torch.backends.mha.get_fastpath_enabled(), "it was off before"
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_activation_checkpointing(seed: int, use_reentrant: bool) -> None:
    def block(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query.sin(), key, value, is_causal=True).cos()

    tensors = qkv(requires_grad=True)
    expected = torch.autograd.grad(block(*tensors).sum(), tensors)
    with patched(CPU):
        checkpoint(block, *tensors, use_reentrant=use_reentrant).sum().backward()
    assert counts() == (2, {}), "forward and recomputation"
    assert all(close(x.grad, y) for x, y in zip(tensors, expected, strict=True))  # type: ignore[arg-type]


# --- what is passed on ---


class Wrapper(Tensor):
    """A subclass that wants to see operators itself, as ``DTensor`` does, and knows PyTorch's only."""

    @staticmethod
    def __new__(cls, tensor: Tensor) -> Wrapper:
        return Tensor._make_wrapper_subclass(cls, tensor.shape, dtype=tensor.dtype)

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert "mps_flash_attn" not in str(func)
        unwrapped = torch.utils._pytree.tree_map(
            lambda x: x.tensor if isinstance(x, Wrapper) else x, (args, kwargs or {})
        )
        return func(*unwrapped[0], **unwrapped[1])


def second_derivative(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        out = F.scaled_dot_product_attention(query, key, value)
    first = torch.autograd.grad(out.square().sum(), query, create_graph=True)[0]
    return torch.autograd.grad(first.square().sum(), query)[0]


def forward_mode(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH), forward_ad.dual_level():
        dual = forward_ad.make_dual(query.detach(), torch.ones_like(query))
        tangent: Tensor = forward_ad.unpack_dual(F.scaled_dot_product_attention(dual, key, value)).tangent
        return tangent.clone()


def functional_gradient(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return torch.func.grad(lambda x: F.scaled_dot_product_attention(x, key, value).square().sum())(query)


SDPA_KERNEL = "flash attention is switched off by sdpa_kernel"
MASK_AND_CAUSAL = "attn_mask together with is_causal"
PASSED_ON: dict[str, tuple[str, Callable[[Tensor, Tensor, Tensor], Tensor]]] = {
    "all dropped": (
        "dropout_p is out of range",
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, dropout_p=1.0),
    ),
    "head size": (
        "head size over 576",
        lambda q, k, v: F.scaled_dot_product_attention(*(x.repeat(1, 1, 1, 80) for x in (q, k, v))),
    ),
    "mask and causal": (
        MASK_AND_CAUSAL,
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, torch.ones(7, 7), is_causal=True),
    ),
    "no heads": ("no key heads", lambda q, k, v: F.scaled_dot_product_attention(q[:, :0], k[:, :0], v[:, :0])),
    "scale 0": (
        "scale is zero or not finite",
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.0),
    ),
    "second derivative": (SDPA_KERNEL, second_derivative),
    "forward mode": (SDPA_KERNEL, forward_mode),
    "torch.func": ("torch.func transform", functional_gradient),
    "subclass": (
        "tensor subclass with its own dispatch",
        lambda q, k, v: F.scaled_dot_product_attention(Wrapper(q), Wrapper(k), Wrapper(v)),
    ),
    "integers": ("dtype not supported", lambda q, k, v: F.scaled_dot_product_attention(q.int(), k.int(), v.int())),
    "dtypes differ": ("dtypes differ", lambda q, k, v: F.scaled_dot_product_attention(q, k.double(), v)),
    "mask dtype": (
        "mask dtype that PyTorch refuses",
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, torch.ones(7, 7, dtype=torch.float64)),
    ),
    "mask rank": (
        "mask of fewer than two dimensions, which PyTorch refuses",
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, torch.ones(7)),
    ),
    "mask shape": (
        "mask does not broadcast",
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, torch.ones(3, 3)),
    ),
    "heads do not divide": (
        "heads do not divide",
        lambda q, k, v: F.scaled_dot_product_attention(q, k[:, :3], v[:, :3], enable_gqa=True),
    ),
    "lengths": ("lengths of key and value differ", lambda q, k, v: F.scaled_dot_product_attention(q, k, v[:, :, 1:])),
}


@pytest.mark.parametrize("name", PASSED_ON)
def test_passed_on_calls_are_pytorchs_own(seed: int, name: str) -> None:
    """The same bits, or the same error in the same words, with the reason on record."""
    reason, call = PASSED_ON[name]
    tensors = qkv(requires_grad=True)

    def outcome() -> Tensor | tuple[type[Exception], str]:
        torch.manual_seed(seed)
        try:
            return call(*tensors).detach()
        except Exception as error:
            return type(error), str(error).partition("\n")[0]

    expected = outcome()
    with patched(CPU):
        actual = outcome()
    accelerated, reasons = counts()
    assert (accelerated, set(reasons)) == (0, {reason})
    if isinstance(expected, Tensor):
        assert isinstance(actual, Tensor)
        assert torch.equal(actual, expected)
    else:
        assert actual == expected


def test_passed_on_calls_keep_pytorchs_choice_of_kernel() -> None:
    query, key, value = qkv()
    for backends in ([SDPBackend.MATH], [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):
        used = []
        for block in (contextlib.nullcontext(), patched(CPU)):
            with block, sdpa_kernel(backends), Operators() as operators:
                F.scaled_dot_product_attention(query, key, value, dropout_p=1.0)
                F.scaled_dot_product_attention(query[:, :0], key[:, :0], value[:, :0])
            used.append(operators.names)
        assert used[0] == used[1]


def test_nested_tensors_keep_working() -> None:
    nested = torch.nested.nested_tensor([torch.randn(4, n, D) for n in (3, 5)], layout=torch.strided)
    expected = F.scaled_dot_product_attention(nested, nested, nested)
    with patched(CPU):
        actual = F.scaled_dot_product_attention(nested, nested, nested)
    assert all(torch.equal(a, b) for a, b in zip(actual.unbind(), expected.unbind(), strict=True))


def test_vmap_keeps_working(seed: int) -> None:
    stacked = torch.randn(3, 2, 4, 7, D)
    attention = torch.vmap(lambda x: F.scaled_dot_product_attention(x, x, x))
    expected = attention(stacked)
    with patched(CPU):
        assert close(attention(stacked), expected)


# --- devices, nesting, state ---


def test_default_is_mps_alone() -> None:
    patch()
    table = dispatch_table()
    assert "AutogradMPS: registered at" in table[0]
    assert "AutogradCPU: registered at" not in table[0]
    F.scaled_dot_product_attention(*qkv())
    assert counts() == (0, {})
    unpatch()
    assert dispatch_table() == UNPATCHED


@pytest.mark.parametrize("change", [patch, lambda devices: patched(devices).__enter__()], ids=["patch", "patched"])
@pytest.mark.parametrize("devices", [("xpu",), ("mps", "gpu"), ("",), "tpu"])
def test_unknown_devices_are_named_and_nothing_changes(change: Callable[[Any], None], devices: Any) -> None:
    unknown = devices if isinstance(devices, str) else devices[-1]
    with pytest.raises(ValueError, match=rf"devices holds '{unknown}'; accepted are 'cpu', 'cuda', 'mps'"):
        change(devices)
    assert dispatch_table() == UNPATCHED


def test_a_refused_registration_leaves_everything_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    original = torch.library.Library.impl

    def refuse_the_last(self: Any, name: str, fn: Any, key: str = "", **options: Any) -> None:
        if key == "CPU":
            raise RuntimeError("another library has this kernel")
        original(self, name, fn, key, **options)

    monkeypatch.setattr(torch.library.Library, "impl", refuse_the_last)
    with pytest.raises(RuntimeError, match="another library"):
        patch(("mps", "cpu"))
    assert dispatch_table() == UNPATCHED
    monkeypatch.undo()
    patch(("mps",))
    unpatch()


def test_somebody_elses_override_comes_back() -> None:
    library = torch.library.Library("aten", "IMPL")
    library.impl("scaled_dot_product_attention", lambda *args, **options: torch.zeros(()), "AutogradCPU")
    try:
        theirs = dispatch_table()
        with contextlib.suppress(RuntimeError), patched(CPU):  # some versions of PyTorch refuse a second override
            assert F.scaled_dot_product_attention(*qkv()).dim() == 4
        assert dispatch_table() == theirs
        assert F.scaled_dot_product_attention(*qkv()).dim() == 0
    finally:
        library._destroy()


def test_patched_decorates_and_ends_with_exceptions() -> None:
    @patched(CPU)
    def fail() -> None:
        F.scaled_dot_product_attention(*qkv())
        raise KeyError

    for expected in (1, 2):
        with pytest.raises(KeyError):
            fail()
        assert counts() == (expected, {})
        assert dispatch_table() == UNPATCHED


class PatchMachine(RuleBasedStateMachine):
    """Any order of `patch`, `unpatch` and blocks that open and close out of order."""

    devices = st.sets(st.sampled_from(["cpu", "mps"]), min_size=1).map(tuple)

    def __init__(self) -> None:
        super().__init__()
        self.asked: set[str] = set()
        self.blocks: list[tuple[tuple[str, ...], Any]] = []

    @initialize()
    def start(self) -> None:
        reset_stats()

    @rule(devices=devices)
    def patch(self, devices: tuple[str, ...]) -> None:
        patch(devices)
        self.asked |= set(devices)

    @rule()
    def unpatch(self) -> None:
        unpatch()
        self.asked.clear()

    @rule(devices=devices)
    def open_block(self, devices: tuple[str, ...]) -> None:
        block = patched(devices)
        block.__enter__()
        self.blocks.append((devices, block))

    @rule(data=st.data())
    def close_block(self, data: st.DataObject) -> None:
        if self.blocks:
            _, block = self.blocks.pop(data.draw(st.integers(0, len(self.blocks) - 1)))
            block.__exit__(None, None, None)

    @invariant()
    def the_dispatcher_follows(self) -> None:
        wanted = self.asked.union(*(devices for devices, _ in self.blocks))
        registered, table = dispatch_table()
        for device, key in (("cpu", "AutogradCPU"), ("mps", "AutogradMPS")):
            assert (f"\n{key}: registered at" in registered) == (device in wanted)
        if not wanted:
            assert (registered, table) == UNPATCHED
        before = stats().accelerated
        query = torch.ones(1, 1, 1, D)
        assert torch.equal(F.scaled_dot_product_attention(query, query, query), query)
        assert stats().accelerated - before == ("cpu" in wanted)

    def teardown(self) -> None:
        for _, block in self.blocks:
            block.__exit__(None, None, None)
        unpatch()


TestPatchMachine = PatchMachine.TestCase
TestPatchMachine.settings = settings(max_examples=25, stateful_step_count=15, deadline=None)


# --- stats ---


def test_stats_tell_devices_apart_and_read_well() -> None:
    assert str(stats()) == "no attention call went through the patch"
    query, key, value = qkv()
    with patched(CPU):
        for _ in range(3):
            F.scaled_dot_product_attention(query, key, value)
            F.scaled_dot_product_attention(query, key, value, dropout_p=1.0)
        F.scaled_dot_product_attention(query, key, value[..., :0])
    seen = stats()
    assert (seen.accelerated, seen.passed_on) == (3, 4)
    assert seen.devices["cpu"].reasons == {"dropout_p is out of range": 3, "head size 0": 1}
    words = "3 dropout_p is out of range, 1 head size 0"
    assert str(seen) == f"cpu: 3 accelerated, 4 passed on to PyTorch ({words})"
    reset_stats()
    assert seen.accelerated == 3, "a snapshot"
    assert not stats().devices


# --- threads ---


def test_threads_are_counted_exactly_and_agree(seed: int) -> None:
    query, key, value = qkv(requires_grad=True)
    expected = F.scaled_dot_product_attention(query, key, value)
    wrong: list[Any] = []

    def work() -> None:
        for _ in range(20):
            out = F.scaled_dot_product_attention(query, key, value)
            grad = torch.autograd.grad(out.sum(), query)[0]
            if not (close(out, expected) and grad.isfinite().all()):
                wrong.append(out)

    with patched(CPU):
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong
    assert counts() == (60, {})


def test_blocks_of_several_threads_overlap() -> None:
    barrier = threading.Barrier(2, timeout=30)
    seen: Counter[bool] = Counter()

    def work() -> None:
        for _ in range(20):
            with patched(CPU):
                barrier.wait()
                seen[dispatch_table() != UNPATCHED] += 1
            barrier.wait()

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {True: 40}


TOGGLE = """
import threading, time, torch, torch.nn.functional as F
from mps_flash_attn import patched
query = torch.randn(1, 2, 7, 4)
stop, failures = False, []
def work():
    while not stop:
        try:
            # Passed on, so that no kernel has to be compiled: the way into the override is what is tried.
            F.scaled_dot_product_attention(query, query, query, dropout_p=1.0)
        except BaseException as error:
            failures.append(error)
            return
threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads: thread.start()
end = time.monotonic() + 1.5
while time.monotonic() < end and not failures:
    with patched(("cpu",)): time.sleep(0.0002)
stop = True
for thread in threads: thread.join()
assert not failures, failures
"""


@pytest.mark.skipif(not hasattr(torch.library, "get_kernel"), reason="PyTorch before 2.9 frees kernels that are in use")
def test_toggling_under_calls_of_other_threads() -> None:
    """In a process of its own: what may go wrong here is a crash."""
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", TOGGLE],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr[-2000:]


# --- torch.compile and torch.export ---


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, is_causal=True)


def uses_kernel(function: Callable[[], Any]) -> bool:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        function()
    return any(event.key == KERNEL.removesuffix(".default").replace(".", "::") for event in profile.key_averages())


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("context", ["grad", "no_grad", "inference_mode", "autocast"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_functions_use_the_kernel(seed: int, context: str, dynamic: bool) -> None:
    contexts: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
        "grad": contextlib.nullcontext,
        "no_grad": torch.no_grad,
        "inference_mode": torch.inference_mode,
        "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    }
    tensors = qkv(requires_grad=True)
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    with contexts[context](), patched(CPU):
        assert torch.equal(compiled(*tensors), attention(*tensors))
        assert uses_kernel(lambda: compiled(*tensors))
    assert stats().traced > 0


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_functions_follow_the_patch(seed: int) -> None:
    tensors = qkv(requires_grad=True)
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")

    def run() -> None:
        compiled(*tensors).sum().backward()

    assert not uses_kernel(run)
    with patched(CPU):
        assert uses_kernel(run)
        with patched(("mps",)):
            assert uses_kernel(run)
    assert not uses_kernel(run)


@pytest.mark.usefixtures("fresh_compiler")
def test_a_compiled_call_is_passed_on_with_its_reason() -> None:
    compiled = torch.compile(F.scaled_dot_product_attention, fullgraph=True, backend="aot_eager")
    with patched(CPU):
        compiled(*qkv(), dropout_p=1.0)
    accelerated, reasons = counts()
    assert (accelerated, set(reasons)) == (0, {"dropout_p is out of range"})
    assert stats().traced == reasons["dropout_p is out of range"]


@pytest.mark.usefixtures("fresh_compiler")
def test_inductors_caches_know_the_patch(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs that PyTorch keeps on disk are not taken from the other state."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    tensors = qkv(requires_grad=True)

    def used_by_new_function() -> bool:
        torch.compiler.reset()
        compiled = torch.compile(attention, fullgraph=True)
        compiled(*tensors).backward(torch.ones_like(tensors[0]))
        return uses_kernel(lambda: compiled(*tensors))

    for _ in range(2):
        assert not used_by_new_function()
        with patched(CPU):
            assert used_by_new_function()


def test_the_users_cache_tag_survives() -> None:
    config: Any = getattr(torch.compiler, "config", None)
    if not hasattr(config, "cache_key_tag"):
        pytest.skip("PyTorch before 2.7 has no tag")
    before, config.cache_key_tag = config.cache_key_tag, "mine"
    try:
        with patched(CPU):
            assert config.cache_key_tag.startswith("mine+")
            with patched(("mps",)):
                pass
        assert config.cache_key_tag == "mine"
    finally:
        config.cache_key_tag = before


@pytest.mark.usefixtures("fresh_compiler")
def test_export_under_the_patch_keeps_pytorchs_operator() -> None:
    """An exported program has to run where this package is not installed."""

    class Module(nn.Module):
        def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return attention(query, key, value)

    with patched(CPU):
        program = torch.export.export(Module(), qkv())
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert targets == ["aten.scaled_dot_product_attention.default"]


def test_import_loads_no_compiler_and_needs_no_mps() -> None:
    script = (
        "import sys, mps_flash_attn; mps_flash_attn.patch(); mps_flash_attn.unpatch(); "
        "print(sorted({'torch._dynamo', 'torch._inductor', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    )
    assert done.stdout.strip() == "[]"
