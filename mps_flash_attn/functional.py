"""The public functions of every operation, under the names that `torch.nn.functional` has for them where it has one."""

from __future__ import annotations

from .ops.attention.api import Rotary, flash_attention
from .ops.attention.cache_api import flash_attention_with_quantized_kv
from .ops.cross_entropy.api import cross_entropy
from .ops.elementwise.api import add, geglu, gelu, mul, relu, relu_squared, relu_squared_glu, silu, swiglu
from .ops.embedding.api import embedding
from .ops.gemm.api import linear, matmul
from .ops.kv_cache.api import append_kv, rotate_queries
from .ops.merge.api import merge_attention
from .ops.norm.api import add_layer_norm, add_rms_norm, layer_norm, rms_norm
from .ops.quantize.api import QuantizedKV, quantize_kv
from .ops.reduction.api import amax, sum  # noqa: A004
from .ops.rope.api import rope, rope_tables
from .ops.softmax.api import log_softmax, softmax

__all__ = [
    "QuantizedKV",
    "Rotary",
    "add",
    "add_layer_norm",
    "add_rms_norm",
    "amax",
    "append_kv",
    "cross_entropy",
    "embedding",
    "flash_attention",
    "flash_attention_with_quantized_kv",
    "geglu",
    "gelu",
    "layer_norm",
    "linear",
    "log_softmax",
    "matmul",
    "merge_attention",
    "mul",
    "quantize_kv",
    "relu",
    "relu_squared",
    "relu_squared_glu",
    "rms_norm",
    "rope",
    "rope_tables",
    "rotate_queries",
    "silu",
    "softmax",
    "sum",
    "swiglu",
]
