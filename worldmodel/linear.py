"""Dense layers without gradients, by the quickest kernel that gives float32 numbers.

PyTorch's CPU builds hand float32 products to MKL, which leaves AVX-512 unused on other makers' processors. oneDNN, also
built in, uses it: 171 to 200 against 82 to 96 GFLOP/s (one core of an AMD EPYC, 1,152 x 384 x 1,536 and the like), and
applies bias and GELU in the same pass. Results differ from MKL's by rounding only.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# oneDNN's float32 linear layer; torch.compile calls it too. None in builds without it.
ONEDNN_LINEAR: Callable[..., Tensor] | None = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def linear(x: Tensor, weight: Tensor, bias: Tensor, gelu: bool = False) -> Tensor:
    """x W^T + b of [.., K], [M, K] and [M], then the exact GELU if asked for: [.., M].

    By oneDNN for float32 on a CPU where no gradient is needed, by PyTorch otherwise.
    `torch.backends.mkldnn.flags(enabled=False)` turns oneDNN off.
    """
    if ONEDNN_LINEAR is not None and _suits(x, weight):
        return ONEDNN_LINEAR(x, weight, bias, "gelu" if gelu else "none", [], "none" if gelu else "")
    y = F.linear(x, weight, bias)
    return F.gelu(y) if gelu else y


def apply(layer: nn.Linear, x: Tensor, gelu: bool = False) -> Tensor:
    """`linear` with a layer's weights."""
    return linear(x, layer.weight, layer.bias, gelu)


def _suits(x: Tensor, weight: Tensor) -> bool:
    if x.device.type != "cpu" or x.dtype != torch.float32 or weight.dtype != torch.float32:
        return False
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return False
    return torch.backends.mkldnn.enabled and not (torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling())
