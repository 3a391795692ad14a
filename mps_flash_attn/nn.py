"""The layers of a transformer from this package's kernels, in the place of those of `torch.nn`.

Each class is a subclass of PyTorch's and changes nothing but ``forward``: the constructor, the defaults, the
initialisation, the names in ``state_dict`` and ``isinstance`` checks are PyTorch's. `convert` swaps the layers of an
existing model.
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor, nn

from . import functional

__all__ = [
    "GELU",
    "CrossEntropyLoss",
    "Embedding",
    "LayerNorm",
    "Linear",
    "LogSoftmax",
    "MultiheadAttention",
    "RMSNorm",
    "ReLU",
    "SiLU",
    "Softmax",
    "convert",
]

_Module = TypeVar("_Module", bound=nn.Module)


class Linear(nn.Linear):
    """``y = x W^T + b``, [..., in_features] -> [..., out_features]; see :class:`torch.nn.Linear`."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (PyTorch's name)
        return functional.linear(input, self.weight, self.bias)


class LayerNorm(nn.LayerNorm):
    """Normalises over the last dimensions by mean and variance; see :class:`torch.nn.LayerNorm`."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (PyTorch's name)
        return functional.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)


class RMSNorm(nn.RMSNorm):
    """Normalises over the last dimensions by the root of the mean square; see :class:`torch.nn.RMSNorm`."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, self.normalized_shape, self.weight, self.eps)


class GELU(nn.GELU):
    """``x Phi(x)``, exactly or with the approximation by tanh; see :class:`torch.nn.GELU`."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (PyTorch's name)
        return functional.gelu(input, cast("Literal['none', 'tanh']", self.approximate))


class SiLU(nn.SiLU):
    """``x sigmoid(x)``; see :class:`torch.nn.SiLU`. With ``inplace`` the result is copied into the input."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (PyTorch's name)
        result = functional.silu(input)
        return input.copy_(result) if self.inplace else result


class ReLU(nn.ReLU):
    """``max(x, 0)``; see :class:`torch.nn.ReLU`. With ``inplace`` the result is copied into the input."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (PyTorch's name)
        result = functional.relu(input)
        return input.copy_(result) if self.inplace else result


class Softmax(nn.Softmax):
    """``exp(x) / sum exp(x)`` over ``dim``, which has to be given; see :class:`torch.nn.Softmax`."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (PyTorch's name)
        return functional.softmax(input, _given(self.dim))


class LogSoftmax(nn.LogSoftmax):
    """``x - log sum exp(x)`` over ``dim``, which has to be given; see :class:`torch.nn.LogSoftmax`."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (PyTorch's name)
        return functional.log_softmax(input, _given(self.dim))


def _given(dim: int | None) -> int:
    if dim is None:
        raise ValueError("dim is None; accepted is an int, since PyTorch's choice without one is deprecated")
    return dim


class CrossEntropyLoss(nn.CrossEntropyLoss):
    """The cross-entropy of logits with classes or probabilities, fused; see :class:`torch.nn.CrossEntropyLoss`."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:  # noqa: A002 (PyTorch's name)
        return functional.cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=cast("Literal['none', 'mean', 'sum']", self.reduction),
            label_smoothing=self.label_smoothing,
        )


class Embedding(nn.Embedding):
    """Rows of a table by their numbers, [...] -> [..., embedding_dim]; see :class:`torch.nn.Embedding`.

    The gradient of the table is summed in the order of the tokens, so it is the same on every run.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (PyTorch's name)
        return functional.embedding(
            input, self.weight, self.padding_idx, self.max_norm, self.norm_type, self.scale_grad_by_freq, self.sparse
        )


class MultiheadAttention(nn.MultiheadAttention):
    """Attention with its projections; see :class:`torch.nn.MultiheadAttention`.

    The projections and the attention, with its dropout, are kernels of this package where attention is computed without
    its weights: ``need_weights=False``. Otherwise, and with ``use_flash_attention=False``, PyTorch computes, in memory
    that grows with the square of the length.

    Args:
        embed_dim, num_heads, dropout, bias, add_bias_kv, add_zero_attn, kdim, vdim, batch_first, device, dtype: as in
            PyTorch.
        use_flash_attention: False for PyTorch's own computation. An attribute too.
    """

    use_flash_attention: bool = True

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        use_flash_attention: bool = True,
    ) -> None:
        super().__init__(
            embed_dim, num_heads, dropout, bias, add_bias_kv, add_zero_attn, kdim, vdim, batch_first, device, dtype
        )
        self.use_flash_attention = use_flash_attention

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attends from ``query`` to ``key`` and ``value``; arguments, shapes and results as in PyTorch.

        Masks are combined as PyTorch combines them. Of these only a pair of ``attn_mask`` and ``key_padding_mask``
        takes memory of its own, [batch, 1, Lq, Lk]; ``is_causal`` with a ``key_padding_mask`` does not.
        """
        fused = (
            self.use_flash_attention
            and not need_weights
            and not (self.training and self.dropout == 1)
            and query.dim() in (2, 3)
        )
        if not fused:
            return super().forward(
                query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
            )
        if is_causal and attn_mask is None:
            raise ValueError("attn_mask is None and is_causal is True; accepted is is_causal as a hint on an attn_mask")
        batched = query.dim() == 3
        if not batched:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        heads = [x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in self._project(query, key, value)]
        padded = 0 if self.bias_k is None else 1
        if self.add_zero_attn:
            zeros = heads[1].new_zeros(*heads[1].shape[:2], 1, self.head_dim)
            heads[1:] = (torch.cat((x, zeros), dim=2) for x in heads[1:])
            padded += 1
        # As in PyTorch: merged masks let every query see the added keys, which the hint alone hides.
        causal = is_causal and not (padded and key_padding_mask is not None)
        mask = self._mask(None if causal else attn_mask, key_padding_mask, query.shape[0], padded)
        dropout_p = self.dropout if self.training else 0.0
        out = functional.flash_attention(heads[0], heads[1], heads[2], mask, dropout_p, is_causal=causal)
        out = functional.linear(out.transpose(1, 2).flatten(-2), self.out_proj.weight, self.out_proj.bias)
        if not batched:
            return out.squeeze(0), None
        return (out if self.batch_first else out.transpose(0, 1)), None

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of all heads, [batch, L, embed_dim], with the learned key and value if there are."""
        if self._qkv_same_embed_dim and query is key and key is value:
            q, k, v = functional.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        else:
            weights = (
                self.in_proj_weight.chunk(3)
                if self._qkv_same_embed_dim
                else (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
            )
            biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
            q, k, v = map(functional.linear, (query, key, value), weights, biases)
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat((k, self.bias_k.expand(k.shape[0], 1, -1)), dim=1)
            v = torch.cat((v, self.bias_v.expand(v.shape[0], 1, -1)), dim=1)
        return q, k, v

    def _mask(self, attn_mask: Tensor | None, padding: Tensor | None, batch: int, padded: int) -> Tensor | None:
        """Both masks as one that broadcasts to [batch, heads, Lq, Lk]; boolean ones say who takes part."""
        masks = []
        if attn_mask is not None:
            masks.append(attn_mask if attn_mask.dim() == 2 else attn_mask.unflatten(0, (batch, self.num_heads)))
        if padding is not None:
            masks.append(padding[:, None, None, :])
        masks = [nn.functional.pad(mask, (0, padded)) if padded else mask for mask in masks]
        boolean = all(mask.dtype == torch.bool for mask in masks)
        masks = [~mask if boolean else _additive(mask) for mask in masks]
        if len(masks) == 2:
            return masks[0] & masks[1] if boolean else masks[0] + masks[1]
        return masks[0] if masks else None


def _additive(mask: Tensor) -> Tensor:
    """A mask as `torch.nn.MultiheadAttention` reads it (true: hidden), in numbers to add."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=torch.float32).masked_fill(mask, -torch.inf)


#: PyTorch's layers and those that take their place.
_LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    layer.__mro__[1]: layer
    for layer in (
        CrossEntropyLoss,
        Embedding,
        GELU,
        LayerNorm,
        Linear,
        LogSoftmax,
        MultiheadAttention,
        RMSNorm,
        ReLU,
        SiLU,
        Softmax,
    )
}


def convert(module: _Module) -> _Module:
    """Swaps the layers of a model for those of this package: the same parameters, hooks and settings, other kernels.

    Layers are swapped where their class is exactly PyTorch's; subclasses, which may compute something else, stay.

    Args:
        module: changed in place. A layer that is itself swapped is returned anew, with its parameters shared.

    Returns:
        The model.

    Example:
        >>> import torch
        >>> import mps_flash_attn
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 4))
        >>> mps_flash_attn.nn.convert(model)(torch.randn(2, 8)).shape
        torch.Size([2, 4])
    """
    swapped: dict[nn.Module, nn.Module] = {}  # a layer used in two places stays one layer

    def swap(old: nn.Module) -> nn.Module:
        if old not in swapped:
            swapped[old] = old
            layer = _LAYERS.get(type(old))
            if layer is not None:
                swapped[old] = new = layer.__new__(layer)
                new.__dict__ = old.__dict__
            for name, child in old._modules.items():
                if child is not None:
                    old._modules[name] = swap(child)
        return swapped[old]

    result: Any = swap(module)
    return result
