"""The ladder: every rung is right, and shows the gain that its idea claims in what the simulator counts."""

from __future__ import annotations

import functools
import re

import pytest
import torch

from mps_flash_attn import UnsupportedError, source
from mps_flash_attn.errors import KernelCheckError
from mps_flash_attn.launch import Capabilities
from mps_flash_attn.ops.gemm.ladder import RUNGS, Rung, Tiling, launch, multiply, tilings, tuned
from mps_flash_attn.ops.gemm.ladder.plan import Problem
from mps_flash_attn.runtime import base, simulator
from tests.ops.barriers import BARRIER, without_barrier
from tests.tolerance import assert_accurate

#: Of the products that are counted: multiples of every block, so that nothing is cut off.
M, N, K = 128, 128, 64
FLOAT_BYTES = 4

rungs = pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: f"{rung.number} {rung.name}")


def check(rung: Rung, rows: int, columns: int, depth: int, dtype: torch.dtype) -> None:
    a, b = torch.randn(rows, depth).to(dtype), torch.randn(depth, columns).to(dtype)
    name = f"rung {rung.number} on {rows} x {columns} x {depth} in {dtype}"
    assert_accurate(name, multiply(rung, a, b), a @ b, a.double() @ b.double())


@rungs
def test_sizes(rung: Rung, seed: int) -> None:
    for rows, columns, depth in ((1, 1, 1), (33, 129, 17), (129, 3, 65), (17, 33, 0), (0, 5, 3), (3, 65, 33)):
        check(rung, rows, columns, depth, torch.float32)


@rungs
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_dtypes(rung: Rung, dtype: torch.dtype, seed: int) -> None:
    check(rung, 130, 72, 40, dtype)


def test_unaligned_operands(seed: int) -> None:
    """Matrices that start between quads, though their rows are whole numbers of them."""
    a, b = torch.randn(8 * 8 + 1)[1:].view(8, 8), torch.randn(8 * 8 + 1)[1:].view(8, 8)
    for rung in RUNGS[5:]:
        assert torch.allclose(multiply(rung, a, b), a @ b, atol=1e-5)


@functools.cache
def counted(number: int) -> simulator.LaunchRecord:
    torch.manual_seed(0)
    a, b = torch.randn(M, K), torch.randn(K, N)
    with simulator.profile(transactions=True) as profile:
        multiply(RUNGS[number - 1], a, b)
    (record,) = profile.launches
    return record


def device_read(number: int) -> int:
    return counted(number).counters.device_bytes_read


def threadgroup_read(number: int) -> int:
    return counted(number).counters.threadgroup_bytes_read


def test_rung_1_reads_two_elements_for_each_product() -> None:
    assert device_read(1) == 2 * M * N * K * FLOAT_BYTES
    assert counted(1).counters.device_bytes_written == M * N * FLOAT_BYTES


def test_rung_2_touches_one_segment_for_each_operand() -> None:
    accesses = M * N * (2 * K + 1) // 32
    naive, coalesced = (counted(number).transactions for number in (1, 2))
    assert naive.device_accesses == coalesced.device_accesses == accesses
    assert coalesced.device_segments == accesses
    # 32 rows of A and one element of B for each product, then 32 rows of C.
    assert naive.device_segments == M * N // 32 * (K * 33 + 32)
    assert device_read(2) == device_read(1)


def test_rung_3_reads_device_memory_once_for_a_block() -> None:
    assert device_read(3) * RUNGS[2].tiling.BM == device_read(2)
    assert threadgroup_read(3) == 2 * M * N * K * FLOAT_BYTES


def test_rung_4_reads_b_once_for_a_column_of_sums() -> None:
    tm = RUNGS[3].tiling.TM
    assert threadgroup_read(4) == M * N * K * FLOAT_BYTES * (tm + 1) // tm
    assert device_read(4) * 2 == device_read(3)


def test_rung_5_reads_threadgroup_memory_once_for_a_row_and_a_column() -> None:
    tm, tn = RUNGS[4].tiling.TM, RUNGS[4].tiling.TN
    assert threadgroup_read(5) == M * N * K * FLOAT_BYTES * (tm + tn) // (tm * tn)
    assert threadgroup_read(5) * 2 < threadgroup_read(4)
    assert device_read(5) * 2 == device_read(4)


def test_rung_6_moves_four_elements_at_a_time() -> None:
    scalar, vector = counted(5), counted(6)
    assert vector.counters.device_bytes == scalar.counters.device_bytes
    assert vector.counters.threadgroup_bytes == scalar.counters.threadgroup_bytes
    written = M * N // 32  # by single elements in both: the simulator's compiler takes quads apart that it has at hand
    assert (vector.transactions.device_accesses - written) * 4 == scalar.transactions.device_accesses - written
    # All reads of threadgroup memory and the writes of B; those of A, which is transposed, stay single.
    assert vector.transactions.threadgroup_accesses * 3.5 < scalar.transactions.threadgroup_accesses


def test_rung_7_needs_one_barrier_a_step() -> None:
    steps = K // RUNGS[6].tiling.BK
    assert counted(6).counters.threadgroup_barriers == 2 * steps
    assert counted(7).counters.threadgroup_barriers == steps
    assert counted(7).counters.device_bytes == counted(6).counters.device_bytes
    assert counted(7).counters.threadgroup_bytes == counted(6).counters.threadgroup_bytes


def test_rung_8_has_no_bank_conflicts() -> None:
    before, after = counted(7).transactions, counted(8).transactions
    assert before.threadgroup_conflicts > before.threadgroup_passes / 3
    assert after.threadgroup_conflicts == 0
    assert after.threadgroup_passes * 2 < before.threadgroup_passes
    assert after.threadgroup_accesses == before.threadgroup_accesses


def test_rung_9_takes_the_tiling_that_the_tuner_ranks_best(seed: int) -> None:
    if base.for_device("cpu") is not simulator:
        pytest.skip("tilings are ranked by what the simulator counts")
    worse, impossible = Tiling(64, 64, 16, 4, 4, pad=4, stages=2), Tiling(256, 256, 8, 4, 4, pad=4, stages=2)
    subject = tuned.subject(Problem(torch.float32, M, N, K), (RUNGS[7].tiling, worse, impossible))
    result = tuned.tune.search(subject, "cpu")
    costs = {trial.tiling: trial.cost for trial in result.trials}
    assert result.best is not None
    assert result.best.tiling == RUNGS[7].tiling
    assert costs[RUNGS[7].tiling] < costs[worse] < costs[impossible] == float("inf")


def test_rung_10_multiplies_matrices() -> None:
    found, tiling = counted(10), RUNGS[9].tiling
    assert found.counters.matrix_products == M * N * K // 8**3
    # A simdgroup's tiles of A and B serve all of its part of the block.
    rows, columns = tiling.BM // tiling.WM, tiling.BN // tiling.WN
    assert threadgroup_read(10) == M * N * K * FLOAT_BYTES * (rows + columns) // (rows * columns)
    assert threadgroup_read(10) * 3 < threadgroup_read(8)


@rungs
def test_no_finding(rung: Rung, seed: int) -> None:
    a, b = torch.randn(40, 40), torch.randn(40, 36)
    with simulator.check():
        c = multiply(rung, a, b)
    assert not c.isnan().any(), "an element was never written"


@rungs
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_text_is_legal_metal(rung: Rung, dtype: torch.dtype) -> None:
    strict = pytest.importorskip("mps_flash_attn.runtime.simulator.strict")
    pytest.importorskip("clang.cindex")
    for sizes in ((128, 128, 128), (65, 33, 17)):  # rows of whole quads, and not
        strict.check(launch(rung, Problem(dtype, *sizes), Capabilities()).text)


BARRIERS = [
    (rung, number)
    for rung in RUNGS
    if rung.number != 9
    for number in range(len(BARRIER.findall(source.flatten(f"ops/gemm/ladder/{rung.file}"))))
]


@pytest.mark.parametrize(("rung", "number"), BARRIERS, ids=lambda x: str(x.number) if isinstance(x, Rung) else str(x))
def test_each_barrier_is_missed(rung: Rung, number: int, seed: int) -> None:
    a, b = torch.randn(40, 40), torch.randn(40, 36)
    with (
        pytest.raises(KernelCheckError),
        without_barrier(f"ops/gemm/ladder/{rung.file}", number),
        simulator.check(strict_parse=False),
    ):
        multiply(rung, a, b)


def test_nine_kernels_have_files_and_names() -> None:
    assert [rung.number for rung in RUNGS] == list(range(1, 11))
    for rung in RUNGS:
        text = source.flatten(f"ops/gemm/ladder/{rung.file}")
        assert re.search(rf"kernel void {rung.kernel}\(", text)
    assert len({rung.file for rung in RUNGS}) == 9


def test_tilings_are_distinct_and_some_can_run() -> None:
    every = list(tilings())
    assert len(set(every)) == len(every)
    assert every[0] == RUNGS[7].tiling

    def runs(tiling: Tiling) -> bool:
        try:
            planned = launch(RUNGS[8], Problem(torch.float32, M, N, K), Capabilities(), tiling)
        except UnsupportedError:
            return False
        return planned.threadgroup_bytes <= 32 * 1024 and planned.group_size[0] <= 1024

    assert sum(map(runs, every)) >= 10


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tiling": Tiling(256, 128, 8, 4, 4, pad=4, stages=2)}, "2048 threads are more than 1024"),
        ({"tiling": Tiling(128, 128, 4, 8, 8, pad=4, stages=2)}, "no whole number of quads for each of 256 threads"),
        ({"tiling": Tiling(64, 32, 32, 8, 8, pad=4)}, "not made of 4 x 8 threads"),
        ({"tiling": Tiling(128, 128, 32, 8, 8, pad=4, stages=2)}, "bytes of threadgroup memory are more than 32768"),
        ({"dtype": torch.float64}, "float64 has no kernel on this device"),
        ({"depth": 2**31}, "do not fit in 32 bits"),
    ],
)
def test_plans_refuse_what_cannot_run(changes: dict[str, object], words: str) -> None:
    values = {"dtype": torch.float32, "rows": M, "columns": N, "depth": K} | {
        name: value for name, value in changes.items() if name != "tiling"
    }
    with pytest.raises(UnsupportedError, match=words):
        launch(RUNGS[7], Problem(**values), Capabilities(), changes.get("tiling"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("a", "b", "error", "words"),
    [
        (torch.zeros(4, 5), torch.zeros(4, 5), ValueError, r"b has shape \(4, 5\); accepted are as many rows"),
        (torch.zeros(5, 4).T, torch.zeros(5, 3), ValueError, "a has shape .* accepted is a contiguous matrix"),
        (torch.zeros(4, 5), torch.zeros(5), ValueError, r"b has shape \(5,\)"),
        (torch.zeros(4, 5), torch.zeros(5, 3).half(), TypeError, "b has dtype torch.float16 and a torch.float32"),
    ],
)
def test_bad_arguments_are_named(a: torch.Tensor, b: torch.Tensor, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        multiply(RUNGS[0], a, b)
