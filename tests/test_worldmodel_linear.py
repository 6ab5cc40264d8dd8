"""Dense layers by oneDNN: PyTorch's numbers, and PyTorch itself wherever oneDNN does not suit."""

import pytest
import torch
import torch.nn.functional as F

from armworld.worldmodel import linear as module
from armworld.worldmodel.linear import ONEDNN_LINEAR, linear

needs_onednn = pytest.mark.skipif(ONEDNN_LINEAR is None, reason="this torch was built without oneDNN")


def layer(*shape: int, out: int = 24) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    draw = [torch.randn(size, generator=generator) for size in (shape, (out, shape[-1]), (out,))]
    return draw[0], draw[1], draw[2]


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("shape", [(1, 8), (7, 33), (2, 3, 5, 16)])
def test_the_numbers_are_pytorchs(shape: tuple[int, ...], gelu: bool) -> None:
    x, weight, bias = layer(*shape)
    wanted = F.linear(x.double(), weight.double(), bias.double())
    wanted = F.gelu(wanted) if gelu else wanted
    torch.testing.assert_close(linear(x, weight, bias, gelu).double(), wanted, atol=2e-5, rtol=0)


def test_strided_inputs_are_read_rightly() -> None:
    x, weight, bias = layer(6, 4, 16)
    for strided in (x.transpose(0, 1), x[:, ::2], x[:, :1].expand(-1, 5, -1)):
        torch.testing.assert_close(linear(strided, weight, bias), F.linear(strided, weight, bias), atol=2e-5, rtol=0)


@needs_onednn
def test_gradients_and_other_precisions_go_through_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[torch.dtype] = []

    def count(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *_) -> torch.Tensor:
        calls.append(x.dtype)
        return F.linear(x, weight, bias)

    monkeypatch.setattr(module, "ONEDNN_LINEAR", count)
    x, weight, bias = layer(3, 8)
    linear(x.requires_grad_(), weight, bias).sum().backward()
    assert x.grad is not None and not calls
    linear(x.detach().bfloat16(), weight.bfloat16(), bias.bfloat16())
    linear(x.detach().double(), weight.double(), bias.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x.detach(), weight, bias).dtype == torch.bfloat16
    assert not calls
    with torch.no_grad():
        linear(x, weight, bias)
    linear(x.detach(), weight, bias)
    assert calls == [torch.float32] * 2
