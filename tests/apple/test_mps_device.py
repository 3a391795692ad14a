"""The pretend device itself, and the whole path from ``patch()`` to an optimizer step on it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mps_flash_attn

from . import mps

pytestmark = pytest.mark.usefixtures("device")


def test_tensors_live_on_the_device(seed: int) -> None:
    x = torch.randn(4, 6, device="mps")
    assert x.is_mps
    assert torch.backends.mps.is_available()
    view = x.t()[1:, ::2]
    assert view.data_ptr() != torch.ops.pretend_mps.host_alias(view).data_ptr()  # a buffer is not its contents
    torch.testing.assert_close((view @ view.t()).cpu(), view.cpu() @ view.cpu().t())
    view.add_(1)
    torch.testing.assert_close(x.cpu().t()[1:, ::2], view.cpu())


def test_float64_is_refused() -> None:
    with pytest.raises(TypeError, match="float64"):
        torch.zeros(1, dtype=torch.float64, device="mps")


def test_memory_can_run_out() -> None:
    mps.limit_memory(1 << 20)
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        torch.empty(1 << 20, device="mps")
    mps.limit_memory()
    assert torch.zeros(1 << 20, device="mps").sum().item() == 0


class _Block(nn.Module):
    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(size)
        self.qkv = nn.Linear(size, 3 * size)
        self.out = nn.Linear(size, size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, size = x.shape
        qkv = self.qkv(self.norm(x)).view(batch, length, 3, self.heads, size // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return x + self.out(mixed.transpose(1, 2).reshape(x.shape))


def _train(device: str, start: dict[str, torch.Tensor], data: torch.Tensor) -> list[float]:
    model = nn.Sequential(_Block(32, 2), _Block(32, 2), nn.Linear(32, 8))
    model.load_state_dict(start)
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(4):
        loss = model(data.to(device)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_a_patched_model_trains_as_on_the_cpu(seed: int) -> None:
    start = nn.Sequential(_Block(32, 2), _Block(32, 2), nn.Linear(32, 8)).state_dict()
    data = torch.randn(3, 21, 32)
    expected = _train("cpu", start, data)
    mps_flash_attn.reset_stats()
    with mps_flash_attn.patched():
        losses = _train("mps", start, data)
    assert mps_flash_attn.stats().devices["mps"].accelerated == 4 * 2, mps_flash_attn.stats()
    assert losses[-1] < losses[0]
    assert losses == pytest.approx(expected, rel=1e-4)
