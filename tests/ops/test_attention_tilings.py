"""Every option of the attention kernels' tilings gives right results, and moves the bytes that the plan predicts."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mps_flash_attn import cli, launch, tune
from mps_flash_attn.errors import UnsupportedError
from mps_flash_attn.functional import rope_tables
from mps_flash_attn.launch import BoundLaunch, Launch, Runtime, bind
from mps_flash_attn.ops.attention import function, plan, tuning
from mps_flash_attn.ops.attention.cases import Case, Inputs, LayoutName, MaskName
from mps_flash_attn.ops.attention.operands import operands, problem
from mps_flash_attn.ops.attention.problem import Causal
from mps_flash_attn.runtime import simulator
from mps_flash_attn.tune import Choice, Key
from tests.ops.test_attention_plan import problem as some_problem
from tests.tolerance import assert_accurate

KERNELS = (plan.FORWARD, plan.BACKWARD_DQ, plan.BACKWARD_DKV)
HEAD_SIZE = 24  # two tiles, the second half empty


@dataclasses.dataclass(frozen=True)
class Variant:
    """What shapes a kernel's text beside the tiling; each tiling is tested with one, so that texts stay few."""

    dtype: torch.dtype
    causal: Causal
    mask: MaskName
    layout: LayoutName

    def inputs(self, queries: int, keys: int, batch: int, key_heads: int) -> Inputs:
        case = Case(queries, keys, HEAD_SIZE, batch, 2, key_heads, self.causal, self.layout, self.mask)
        return case.inputs(self.dtype)


VARIANTS = (
    Variant(torch.float32, Causal.BOTTOM_RIGHT, "none", "contiguous"),
    Variant(torch.bfloat16, Causal.NONE, "additive", "sliced"),
    Variant(torch.float16, Causal.TOP_LEFT, "boolean", "transposed"),
)


#: Options that only say how much of something; the others choose between ways through the kernels' text.
SIZES = ("block", "simdgroups")


def options(tiling: plan.Tiling) -> set[Any]:
    """The sizes of a tiling, and every two others of its options."""
    values = dataclasses.asdict(tiling)
    sizes = {(name, values.pop(name)) for name in SIZES}
    return sizes | set(itertools.combinations(values.items(), 2))


def runs(kernel: plan.Kernel, which: plan.Problem, tiling: plan.Tiling) -> bool:
    try:
        plan.walk(which, simulator.CAPABILITIES, kernel, tiling)
    except UnsupportedError:
        return False
    return True


def drawn(kernel: plan.Kernel, seed: int) -> list[tuple[plan.Tiling, Variant]]:
    """A few random tilings that between them have all `options` of any tiling which can run."""
    which = some_problem(dtype=torch.float32, head_size=HEAD_SIZE)
    every = [x for x in plan.tilings(which, simulator.CAPABILITIES, kernel) if runs(kernel, which, x)]
    generator = random.Random(seed)
    generator.shuffle(every)
    missing = set().union(*map(options, every))
    picked = []
    while missing:
        best = max(every, key=lambda tiling: len(options(tiling) & missing))
        picked.append(best)
        missing -= options(best)
    return list(zip(picked, itertools.cycle(generator.sample(VARIANTS, len(VARIANTS)))))


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_every_option_is_drawn(kernel: plan.Kernel, seed: int) -> None:
    offered = [dataclasses.asdict(x) for x in plan.tilings(some_problem(), simulator.CAPABILITIES, kernel)]
    tilings = [dataclasses.asdict(x) for x, _ in drawn(kernel, seed)]
    for name in offered[0]:
        assert {x[name] for x in tilings} == {x[name] for x in offered}, name
    assert plan.default_tiling(some_problem(), simulator.CAPABILITIES, kernel) in plan.tilings(
        some_problem(), simulator.CAPABILITIES, kernel
    )


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_right_results_no_finding_and_the_bytes_that_the_plan_predicts(kernel: plan.Kernel, seed: int) -> None:
    generator = random.Random(seed)
    for tiling, variant in drawn(kernel, seed):
        for _ in range(2):
            queries, keys = generator.randint(1, 140), generator.randint(1, 140)
            inputs = variant.inputs(queries, keys, generator.randint(1, 2), generator.randint(1, 2))
            assert_right(kernel, inputs, tiling, f"{queries} queries, {keys} keys, {variant}")
        assert_traffic(kernel, variant.inputs(150, 130, 1, 1), tiling)


@pytest.mark.parametrize("staged", [True, False])
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_threadgroups_share_out_columns(kernel: plan.Kernel, staged: bool, seed: int) -> None:
    """In more blocks than the narrower of the two matrices has tiles."""
    tiling = plan.Tiling(16, 2, 1, plan.Hold.NOWHERE, stage_values=staged, staged=staged, column_blocks=3)
    for queries, keys in ((150, 130), (40, 7)):
        inputs = Case(queries, keys, 72, value_head_size=17, causal=Causal.BOTTOM_RIGHT).inputs(torch.float32)
        assert_right(kernel, inputs, tiling, f"{queries} queries, {keys} keys")
        if keys > queries / 2:
            assert_traffic(kernel, inputs, tiling)


def assert_right(kernel: plan.Kernel, inputs: Inputs, tiling: plan.Tiling, what: str) -> None:
    with simulator.check():
        outputs = run(kernel, inputs, tiling)
    _, expected = operands(inputs)[f"attention_{kernel.name}"]
    for output, actual in zip(expected, outputs, strict=True):
        assert_accurate(f"{output.name} of {what} with {tiling}", actual, output.pytorch, output.reference)


def assert_traffic(kernel: plan.Kernel, inputs: Inputs, tiling: plan.Tiling) -> None:
    counted, described = work(kernel, inputs, tiling), problem(inputs)
    predicted = plan.predicted_traffic(plan.walk(described, simulator.CAPABILITIES, kernel, tiling), described)
    assert abs(counted.device_bytes_read - predicted.read) <= 0.1 * predicted.read, f"{tiling}: {counted}, {predicted}"
    assert abs(counted.device_bytes_written - predicted.written) <= 0.1 * predicted.written, tiling


def run(kernel: plan.Kernel, inputs: Inputs, tiling: plan.Tiling) -> list[Tensor]:
    """What a kernel writes with a tiling."""
    launch = plan.walk(problem(inputs), simulator.CAPABILITIES, kernel, tiling)
    read, expected = operands(inputs)[launch.kernel]
    outputs = [torch.full_like(x.pytorch, torch.nan) for x in expected]
    bind(launch, simulator)(*read, *outputs)
    return outputs


def work(kernel: plan.Kernel, inputs: Inputs, tiling: plan.Tiling) -> simulator.Counters:
    """What it does for that."""
    with simulator.profile() as counts:
        run(kernel, inputs, tiling)
    return counts.total


#: The same products in the same order, once from threadgroup memory and once from device memory.
STAGED = plan.Tiling(32, 2, 2, pad=False, stage_values=False)
NOT_STAGED = dataclasses.replace(STAGED, staged=False)


@pytest.mark.parametrize(
    ("kernel", "dtype"),
    [(plan.FORWARD, torch.float64), (plan.BACKWARD_DQ, torch.float16), (plan.BACKWARD_DKV, torch.float64)],
)
@settings(max_examples=20)
@given(
    case=st.builds(
        Case,
        queries=st.integers(1, 100),
        keys=st.integers(1, 100),
        head_size=st.sampled_from((33, 37, 47)),
        batch=st.integers(1, 2),
        query_heads=st.just(2),
        key_heads=st.sampled_from((1, 2)),
        causal=st.sampled_from((Causal.TOP_LEFT, Causal.BOTTOM_RIGHT)),
        layout=st.sampled_from(("contiguous", "transposed", "sliced")),
        rotation=st.builds(
            plan.Rotation, st.integers(1, 16), interleaved=st.just(False), query_position=st.integers(0, 9)
        ),
    ),
    seed=st.integers(0, 2**31),
)
def test_same_bits_with_and_without_staging(kernel: plan.Kernel, case: Case, dtype: torch.dtype, seed: int) -> None:
    """Ends of rows and of columns within a tile, turned tiles and plain ones."""
    torch.manual_seed(seed)
    inputs = case.inputs(dtype)
    with simulator.check():
        direct = run(kernel, inputs, NOT_STAGED)
    for ours, same in zip(direct, run(kernel, inputs, STAGED), strict=True):
        assert torch.equal(ours, same)


@pytest.mark.parametrize(
    ("kernel", "uses", "simdgroups"),
    [(plan.FORWARD, 2, 1), (plan.FORWARD, 2, 2), (plan.BACKWARD_DQ, 3, 1), (plan.BACKWARD_DKV, 4, 1)],
)
def test_what_staging_saves_and_costs(kernel: plan.Kernel, uses: int, simdgroups: int, seed: int) -> None:
    """Without it each simdgroup reads a block once for every product that it is used in; one alone loses nothing."""
    length, block = 128, STAGED.block
    inputs = Case(length, length, 40, batch=1, query_heads=1, key_heads=1).inputs(torch.float16)
    tiling = dataclasses.replace(STAGED, simdgroups=simdgroups)
    staged, direct = (work(kernel, inputs, dataclasses.replace(tiling, staged=staged)) for staged in (True, False))
    threadgroups, row_bytes, padded_row_bytes = length // tiling.own, 40 * 2, 48 * 2
    assert staged.threadgroup_barriers == threadgroups * 2 * (length // block)
    assert staged.threadgroup_bytes_written == threadgroups * 2 * length * padded_row_bytes
    assert direct.threadgroup_barriers == direct.threadgroup_bytes_written == direct.threadgroup_bytes_read == 0
    more = threadgroups * length * row_bytes * (uses * simdgroups - 2)
    assert direct.device_bytes_read == staged.device_bytes_read + more
    assert (more == 0) == (kernel is plan.FORWARD and simdgroups == 1)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"simdgroups": 33}, r"1056 threads; a threadgroup has 32 to 1024"),
        ({"simdgroups": 0}, r"0 threads"),
        ({"block": 24}, r"a block of 24 rows is no multiple of 16"),
        ({"block": 0}, r"a block of 0 rows"),
        ({"block": 256}, r"73728 bytes of threadgroup memory; the device has 32768"),
        ({"buffers": 2}, r"2 buffers; forward has 1 to 1"),
        ({"row_tiles": 0}, r"0 row tiles"),
        ({"hold": 3}, r"held in the way 3"),
        (
            {"staged": False, "hold": plan.Hold.STAGED},
            r"blocks that are not staged, but rows that are kept; they would",
        ),
    ],
)
def test_refused_with_a_reason(changes: dict[str, Any], reason: str) -> None:
    tiling = dataclasses.replace(plan.default_tiling(some_problem(), simulator.CAPABILITIES), **changes)
    with pytest.raises(UnsupportedError, match=reason):
        plan.forward(some_problem(), simulator.CAPABILITIES, tiling)


def test_a_tiling_that_stages_nothing_but_asks_for_more_is_refused() -> None:
    wanted = dataclasses.replace(STAGED, staged=False, buffers=2, stage_values=True)
    with pytest.raises(
        UnsupportedError, match=r"blocks that are not staged, but a second buffer and values; they would"
    ):
        plan.walk(some_problem(), simulator.CAPABILITIES, plan.BACKWARD_DKV, wanted)


READ_AGAIN = plan.Tiling(block=32, hold=plan.Hold.NOWHERE)
KEY = Key("simulator", "attention_forward", "D64-causal-short-queries-short-keys", "float32")


def causal_call(length: int = 30) -> None:
    inputs = Case(length, length, 64, batch=1).inputs(torch.float32)
    function.attention_forward(inputs.query, inputs.key, inputs.value, None, inputs.scale, 1)


def used_hold(call: Callable[[], None]) -> int | None:
    """HOLD of the kernel that a call had to prepare; ``None`` if it was prepared before."""
    seen: list[Launch] = []

    def bind_and_tell(which: Launch, runtime: Runtime) -> BoundLaunch:
        seen.append(which)
        return bind(which, runtime)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "bind", bind_and_tell)
        call()
    return int(dict(seen[0].defines)["HOLD"]) if seen else None


@pytest.mark.usefixtures("own_store")
def test_a_stored_choice_is_used_by_the_next_call_and_by_a_new_process() -> None:
    assert used_hold(causal_call) == 1
    assert used_hold(causal_call) is None
    tune.put({KEY: Choice(dataclasses.asdict(READ_AGAIN), 1.0, None, "ms")})
    assert used_hold(causal_call) == 0
    assert used_hold(lambda: causal_call(200)) == 1, "another class of problems"

    code = "from tests.ops.test_attention_tilings import causal_call, used_hold; print(used_hold(causal_call))"
    for value, expected in (("", "0"), ("0", "1")):
        environment = {**os.environ, tune.VARIABLE: value}
        new = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
        assert new.stdout.strip() == expected, new.stderr


@pytest.mark.usefixtures("own_store")
def test_rotary_attention_has_choices_of_its_own() -> None:
    def call() -> None:
        inputs = Case(30, 30, 64, batch=1).inputs(torch.float32)
        function.attention_forward(inputs.query, inputs.key, inputs.value, None, inputs.scale, 1, *rope_tables(30, 64))

    choice = Choice(dataclasses.asdict(READ_AGAIN), 1.0, None, "ms")
    tune.put({KEY: choice})
    assert used_hold(call) == 1
    tune.put({dataclasses.replace(KEY, shape_class=KEY.shape_class.replace("causal", "causal-rotary")): choice})
    assert used_hold(call) == 0


@pytest.mark.usefixtures("own_store")
def test_a_stored_choice_that_no_longer_plans_gives_way_to_the_default() -> None:
    too_large = dataclasses.replace(READ_AGAIN, block=512)
    tune.put({KEY: Choice(dataclasses.asdict(too_large), 1.0, None, "ms")})
    with pytest.warns(UserWarning, match="bytes of threadgroup memory"):
        assert used_hold(causal_call) == 1


@pytest.mark.usefixtures("own_store")
def test_the_command_line_tunes_what_calls_then_use(capsys: pytest.CaptureFixture[str]) -> None:
    """The default is all that is tried, so that it is compiled already."""
    name = f"{KEY.kernel} {KEY.shape_class}"
    arguments = ["tune", "--device", "cpu", "--only", name, "--dtype", KEY.dtype, "--limit", "1", "--json"]
    assert cli.main(arguments) == 0
    (found,) = json.loads(capsys.readouterr().out)["results"]
    assert found["best"]["tiling"] == dataclasses.asdict(plan.default_tiling(some_problem(), simulator.CAPABILITIES))
    assert tune.chosen(*dataclasses.astuple(KEY)[1:3], torch.float32, torch.device("cpu"), plan.Tiling) is not None


@pytest.mark.parametrize(
    ("kernel", "rotation"),
    [
        (plan.FORWARD, None),
        (plan.BACKWARD_DQ, plan.Rotation(32, interleaved=False, query_position=0)),
        (plan.BACKWARD_DKV, None),
    ],
)
def test_heads_that_repeat_others_have_their_results(kernel: plan.Kernel, rotation: plan.Rotation | None) -> None:
    case = Case(40, 40, 64, batch=1, query_heads=6, key_heads=6, causal=Causal.TOP_LEFT, rotation=rotation)
    subject = tuning.subject(kernel, case, torch.float32, simulator.CAPABILITIES)
    read, _ = subject.operands()
    assert read[0].shape == case.inputs(torch.float32, "meta").query.shape
    assert not torch.equal(read[0][:, 0], read[0][:, 1])
    (trial,) = tune.search(dataclasses.replace(subject, tilings=()), "cpu").trials
    assert trial.outcome is tune.Outcome.RAN, trial.reason


def test_every_kernel_has_subjects_that_its_plans_take() -> None:
    found = [subject for operation, subject in tune.subjects(simulator.CAPABILITIES, "cpu") if operation == "attention"]
    assert {subject.kernel for subject in found} == {f"attention_{kernel.name}" for kernel in KERNELS}
    assert len({subject.name for subject in found}) == len(found), "two stand for the same class"
    assert any("rotary" in subject.shape_class for subject in found)
