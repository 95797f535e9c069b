"""Registration of the activations with torch.library: dispatch, shapes, vmap, and a closed tower of derivatives.

    softplus         a -> y, kept           activation       a -> y (the number kept is a itself)
    activation_bwd   kept, gy -> s' gy      activation_bwd2  kept, gy, ggx -> s'' gy ggx

The kernels belong to ``fastxai.kernels.activation``. Cotangents of ``kept`` are written in a's coordinate, so that
saving the one number is enough at every order. The backward of ``activation_bwd2`` is plain torch: an op without a
backward only warns and gives zeros, and torch.autograd.functional.hvp reaches that deep.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fastxai.kernels import activation as kernels
from fastxai.kernels.activation import Activation
from fastxai.ops._formula import derivative, needs_formula

__all__ = ["activation", "configured"]

# Checking a fresh Activation costs more than a small kernel; equal settings give equal, immutable objects.
configured = lru_cache(maxsize=256)(Activation)

_LIBRARY = torch.library.Library("fastxai", "DEF")
_SETTINGS = "str name, float beta, float alpha, str second"


def _settings(act: Activation) -> tuple[str, float, float, str]:
    assert not isinstance(act.beta, Tensor)
    return act.name, act.beta, act.alpha, act.second


def _dense(kernel: Callable[..., Any], *tensors: Tensor) -> Any:
    """Call an elementwise kernel on contiguous tensors, or on vectors in the memory order of the first one."""
    first = tensors[0]
    if first.dim() and first.numel() and all(map(Tensor.is_contiguous, tensors)):
        return kernel(*tensors)
    # The layout that torch's own elementwise kernels would choose, and that the fake implementations promise.
    stride = torch.empty_like(first, device="meta").stride()

    def vector(t: Tensor) -> Tensor:
        if t.stride() != stride:
            t = torch.empty_strided(t.shape, stride, dtype=t.dtype, device=t.device).copy_(t)
        return t.as_strided((t.numel(),), (1,))

    out = kernel(*map(vector, tensors))
    if isinstance(out, tuple):
        return tuple(t.as_strided(first.shape, stride) for t in out)
    return out.as_strided(first.shape, stride)


def _softplus(a: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    act = configured("softplus", beta)
    return _dense(lambda a: kernels.push(act, a), a)


def _activation(a: Tensor, *settings: Any) -> Tensor:
    act = configured(*settings)
    return _dense(lambda a: kernels.push(act, a)[0], a)


def _bwd(kept: Tensor, gy: Tensor, *settings: Any) -> Tensor:
    act = configured(*settings)
    return _dense(lambda kept, gy: kernels.pull(act, kept, None, gy), kept, gy)


def _bwd2(kept: Tensor, gy: Tensor, ggx: Tensor, *settings: Any) -> Tensor:
    act = configured(*settings)
    return _dense(lambda kept, gy, ggx: kernels.pull_primal(act, kept, gy, ggx, None), kept, gy, ggx)


def _pull(act: Activation, kept: Tensor, gy: Tensor) -> Tensor:
    if needs_formula(gy):
        return derivative(act, kept, 1) * gy
    return activation_bwd(kept, gy, *_settings(act))


def _save_softplus(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.act = configured("softplus", inputs[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1])


def _softplus_backward(ctx: Any, gy: Tensor | None, gkept: Tensor | None) -> tuple[Tensor | None, None]:
    (kept,) = ctx.saved_tensors
    if gy is None:
        return gkept, None
    ga = _pull(ctx.act, kept, gy)
    return ga if gkept is None else ga + gkept, None


def _saver(count: int) -> Callable[..., None]:
    """Return a setup_context that saves the first ``count`` inputs and the settings behind them."""

    def save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.act = configured(*inputs[count:])
        ctx.save_for_backward(*inputs[:count])

    return save


def _activation_backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
    return _pull(ctx.act, ctx.saved_tensors[0], gy), None, None, None, None


def _bwd_backward(ctx: Any, ggx: Tensor) -> tuple[Tensor | None, ...]:
    act, (kept, gy) = ctx.act, ctx.saved_tensors
    gkept = ggy = None
    # Two kernel calls rather than one order-1 pull, whose operands (ggx, 0) would have to be copied side by side and
    # whose results apart again: 38 against 64 us at 65,536 elements, one thread, 2 us more at 64.
    if ctx.needs_input_grad[1]:
        ggy = _pull(act, kept, ggx)
    if ctx.needs_input_grad[0]:
        if act.flat:
            gkept = torch.zeros_like(kept)
        elif needs_formula(ggx) or needs_formula(gy):
            gkept = derivative(act, kept, 2) * gy * ggx
        else:
            gkept = activation_bwd2(kept, gy, ggx, *_settings(act))
    return gkept, ggy, None, None, None, None


def _bwd2_backward(ctx: Any, c: Tensor) -> tuple[Tensor | None, ...]:
    kept, gy, ggx = ctx.saved_tensors
    need_kept, need_gy, need_ggx = ctx.needs_input_grad[:3]
    d2 = derivative(ctx.act, kept, 2) if need_gy or need_ggx else None
    gkept = derivative(ctx.act, kept, 3) * gy * ggx * c if need_kept else None
    return gkept, d2 * ggx * c if need_gy else None, d2 * gy * c if need_ggx else None, None, None, None, None


def _batched(op: Callable[..., Any], count: int, results: int) -> Callable[..., Any]:
    """Return the vmap rule of an elementwise op with ``count`` tensor inputs and ``results`` outputs."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        tensors = [
            t.movedim(d, 0) if d is not None else t.expand(info.batch_size, *t.shape)
            for t, d in zip(args[:count], in_dims, strict=False)
        ]
        return op(*tensors, *args[count:]), 0 if results == 1 else (0,) * results

    return rule


def _register(
    name: str, schema: str, implementation: Callable[..., Any], save: Callable[..., None], backward: Callable[..., Any]
) -> Callable[..., Any]:
    _LIBRARY.define(name + schema)
    for key in ("CPU", "CUDA"):
        _LIBRARY.impl(name, implementation, key)
    op, inputs = getattr(torch.ops.fastxai, name).default, schema.split("->")[0].count("Tensor")
    results = schema.count("Tensor") - inputs
    like = torch.empty_like if results == 1 else lambda a: tuple(torch.empty_like(a) for _ in range(results))
    torch.library.register_fake(op, lambda a, *rest: like(a), lib=_LIBRARY)
    torch.library.register_vmap(op, _batched(op, inputs, results), lib=_LIBRARY)
    torch.library.register_autograd(op, backward, setup_context=save, lib=_LIBRARY)
    return op


softplus = _register(
    "softplus", "(Tensor a, float beta) -> (Tensor, Tensor)", _softplus, _save_softplus, _softplus_backward
)
elementwise = _register(
    "activation", f"(Tensor a, {_SETTINGS}) -> Tensor", _activation, _saver(1), _activation_backward
)
activation_bwd = _register(
    "activation_bwd", f"(Tensor kept, Tensor gy, {_SETTINGS}) -> Tensor", _bwd, _saver(2), _bwd_backward
)
activation_bwd2 = _register(
    "activation_bwd2", f"(Tensor kept, Tensor gy, Tensor ggx, {_SETTINGS}) -> Tensor", _bwd2, _saver(3), _bwd2_backward
)


def activation(act: Activation, a: Tensor) -> Tensor:
    """Return s(a) through the registered ops; shape and memory format as ``a``."""
    return softplus(a, act.beta)[0] if act.name == "softplus" else elementwise(a, *_settings(act))
