"""The public functions of every operation, under the names that `torch.nn.functional` has for them where it has one."""

from __future__ import annotations

from .ops.attention.api import flash_attention

__all__ = ["flash_attention"]
