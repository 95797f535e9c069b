"""The registered ops themselves: schema, autograd, fake tensors, AOT dispatch and vmap."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastxai import ops
from fastxai.kernels.activation import NAMES, RELU_LIKE

INPUTS = {"softplus": 1, "activation": 1, "activation_bwd": 2, "activation_bwd2": 3}


def calls(*names: str) -> list[Any]:
    """Every op with the settings of these activations, the ReLU-like ones with their surrogate."""
    out: list[tuple[str, tuple[Any, ...]]] = [("softplus", (1.5,))]
    for op in ("activation", "activation_bwd", "activation_bwd2"):
        kept = [name for name in names if op != "activation" or name != "softplus"]
        out += [(op, (name, 1.5, 0.3, "curvature" if name in RELU_LIKE else "own")) for name in kept]
    return [pytest.param(*call, id="-".join([call[0], *map(str, call[1])])) for call in out]


def operands(count: int, *shape: int) -> list[Tensor]:
    """Within (0, 0.5), where a number kept by softplus lies too."""
    generator = torch.Generator().manual_seed(count)
    draw = [torch.rand(*shape, dtype=torch.float64, generator=generator) for _ in range(count)]
    return [(0.1 + 0.3 * t).requires_grad_() for t in draw]


@pytest.mark.parametrize(("op", "settings"), calls("softplus", "silu", "relu"))
def test_opcheck(op: str, settings: tuple[Any, ...]) -> None:
    function = getattr(torch.ops.fastxai, op).default
    result = torch.library.opcheck(function, (*operands(INPUTS[op], 2, 3), *settings))
    assert set(result.values()) == {"SUCCESS"}


@pytest.mark.parametrize("op", INPUTS)
def test_opcheck_channels_last_and_strided(op: str) -> None:
    function = getattr(torch.ops.fastxai, op).default
    settings = (1.5,) if op == "softplus" else ("silu", 1.0, 0.3, "own")
    wide = [t.detach() for t in operands(INPUTS[op], 2, 3, 2, 4)]
    for relaid in (
        [t.contiguous(memory_format=torch.channels_last) for t in wide],
        [t[..., ::2] for t in wide],
        [wide[0].contiguous(memory_format=torch.channels_last), *wide[1:]],
    ):
        inputs = [t.requires_grad_() for t in relaid]
        assert set(torch.library.opcheck(function, (*inputs, *settings)).values()) == {"SUCCESS"}


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(("op", "settings"), calls(*NAMES[1:]))
def test_vmap(op: str, settings: tuple[Any, ...]) -> None:
    function = getattr(torch.ops.fastxai, op).default
    first, *rest = (t.detach() for t in operands(INPUTS[op], 3, 4, 2))
    dims = (1, *[None] * len(rest))
    fixed = [t[:, 0] for t in rest]
    got = torch.vmap(lambda *t: function(*t, *settings), in_dims=dims)(first, *fixed)
    wanted = [function(t, *fixed, *settings) for t in first.unbind(1)]
    pairs = zip(*wanted, strict=True) if op == "softplus" else [wanted]
    for mine, other in zip(got if op == "softplus" else [got], pairs, strict=True):
        torch.testing.assert_close(mine, torch.stack(list(other)), rtol=1e-13, atol=0)


@pytest.mark.usefixtures("backend")
def test_grads_batched_through_three_levels() -> None:
    (x,) = operands(1, 5)
    eye = torch.eye(5, dtype=torch.float64)
    (jacobian,) = torch.autograd.grad(ops.silu(x), x, eye, is_grads_batched=True, create_graph=True)
    slope = jacobian.diagonal()
    wanted = x.detach().requires_grad_()
    oracle = wanted * torch.sigmoid(wanted)
    for _ in range(2):
        (oracle,) = torch.autograd.grad(oracle.sum(), wanted, create_graph=True)
        torch.testing.assert_close(slope, oracle, rtol=1e-12, atol=0)
        (jacobian,) = torch.autograd.grad(slope, x, eye, is_grads_batched=True, create_graph=True)
        slope = jacobian.diagonal()
    (oracle,) = torch.autograd.grad(oracle.sum(), wanted)
    torch.testing.assert_close(slope, oracle, rtol=1e-12, atol=0)


@pytest.mark.usefixtures("backend")
def test_second_tensor_is_relaid_not_misread() -> None:
    kept = operands(1, 2, 3, 4, 5)[0].detach().contiguous(memory_format=torch.channels_last)
    gy = operands(2, 2, 3, 4, 5)[1].detach()
    settings = ("sigmoid", 1.0, 0.3, "own")
    got = torch.ops.fastxai.activation_bwd(kept, gy, *settings)
    slope = torch.sigmoid(kept) * torch.sigmoid(-kept)
    torch.testing.assert_close(got, slope * gy, rtol=1e-12, atol=0)


@pytest.mark.usefixtures("backend")
def test_outputs_own_their_memory() -> None:
    (a,) = operands(1, 4)
    y, kept = torch.ops.fastxai.softplus(a.detach(), 1.5)
    z = torch.ops.fastxai.activation(a.detach(), "relu", 1.0, 0.0, "own")
    assert len({t.untyped_storage().data_ptr() for t in (a, y, kept, z)}) == 4
