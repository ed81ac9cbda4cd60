"""A decoder taken apart: some of its layers as a stack of their own, and its head without the logits."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
import transformers
from torch import Tensor, nn

_HEAD_CHUNK = 256  # answer tokens whose logits exist at once: 256 x 49152 x 4 bytes = 50 MB


def stack(decoder: Any, start: int, stop: int, norm: nn.Module) -> Any:
    """A decoder of its own made of some of the layers; weights are shared, the original stays as it is."""
    part = copy.copy(decoder)
    part._modules = dict(decoder._modules)
    part.layers = nn.ModuleList(decoder.layers[start:stop])
    part.norm = norm
    part.config = copy.copy(decoder.config)
    part.config.num_hidden_layers = stop - start
    if getattr(decoder.config, "layer_types", None):
        part.config.layer_types = decoder.config.layer_types[start:stop]  # sliding window or full attention, by layer
    return part


class _StackCache(transformers.DynamicCache):  # type: ignore[misc]
    """Keys and values of a stack of layers, which know their place in the whole model and not in the stack."""

    def __init__(self, first_layer: int) -> None:
        super().__init__()
        self._first_layer = first_layer

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return cast(tuple[Tensor, Tensor], super().update(keys, values, layer_idx - self._first_layer, *args, **kwargs))


def run(layers: Any, kind: str, x: Tensor, shared: int, first_layer: int) -> Tensor:
    """Passes (B, T, ...) through a stack, its first `shared` columns once for all rows; (B, T, D), differentiable."""
    rows = x.shape[0]
    if shared == 0 or rows == 1:
        return cast(Tensor, layers(**{kind: x}, use_cache=False).last_hidden_state)
    cache = _StackCache(first_layer)
    once = layers(**{kind: x[:1, :shared]}, past_key_values=cache, use_cache=True).last_hidden_state
    cache.batch_repeat_interleave(rows)
    rest = layers(**{kind: x[:, shared:]}, past_key_values=cache, use_cache=True).last_hidden_state
    return torch.cat([once.expand(rows, -1, -1), rest], dim=1)


class TokenLogp(torch.autograd.Function):
    """log softmax(h W^T)[id], the entropy and the KL to a reference, without ever keeping the (N, V) logits.

    W is frozen, so the gradients with respect to h are known in the forward pass and are all that has to be kept:

        d logp / dh    = W[id] - p W                         (N, D)
        d entropy / dh = -(p (log p + entropy)) W            (N, D)
        d kl / dh      = (p (log p - log q - kl)) W          (N, D)

    That saves the second forward pass which checkpointing would need. q = softmax(reference W^T); without a reference
    the KL is 0.
    """

    @staticmethod
    def forward(
        ctx: Any, h: Tensor, reference: Tensor | None, head: Tensor, ids: Tensor, entropy_grad: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        logp, entropy, kl = (torch.zeros(len(h), device=h.device) for _ in range(3))
        learning = ctx.needs_input_grad[0]
        d_logp = torch.empty_like(h) if learning else None
        d_entropy = torch.empty_like(h) if learning and entropy_grad else None
        d_kl = torch.empty_like(h) if learning and reference is not None else None
        for start in range(0, len(h), _HEAD_CHUNK):
            part = slice(start, start + _HEAD_CHUNK)
            logps = torch.log_softmax((h[part] @ head.T).float(), dim=-1)  # (C, V)
            p = logps.exp()
            logp[part] = logps.gather(1, ids[part, None]).squeeze(1)
            entropy[part] = -torch.linalg.vecdot(p, logps)
            if d_logp is not None:
                d_logp[part] = head[ids[part]] - p.to(head.dtype) @ head
            if d_entropy is not None:
                d_entropy[part] = -((p * (logps + entropy[part, None])).to(head.dtype) @ head)
            if reference is not None:
                logps -= torch.log_softmax((reference[part] @ head.T).float(), dim=-1)  # now log p - log q
                kl[part] = torch.linalg.vecdot(p, logps)
            if d_kl is not None:
                d_kl[part] = p.mul_(logps.sub_(kl[part, None])).to(head.dtype) @ head
        ctx.save_for_backward(d_logp, d_entropy, d_kl)
        ctx.mark_non_differentiable(*(x for x, d in ((entropy, d_entropy), (kl, d_kl)) if d is None))
        return logp, entropy, kl

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        gradient = torch.zeros_like(ctx.saved_tensors[0])
        for along, direction in zip(gradients, ctx.saved_tensors, strict=True):
            if direction is not None:
                gradient += along[:, None].to(direction.dtype) * direction
        return gradient, None, None, None, None
