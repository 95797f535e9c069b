"""Steps of attacks: move an image against or along a gradient and make it valid, one pass over memory.

Contract (all backends; x [N, C, ...]; low, high [C]; origin is the image before the attack; g is the gradient):

    adam_clamp         m <- b1 m + (1-b1) g;  v <- b2 v + (1-b2) g^2        in place
                       x' = clip(x - lr (m / (1-b1^t)) / (sqrt(v / (1-b2^t)) + eps))
    sign_project_clip  x' = clip(project(x + alpha sign(g))), onto |x' - origin| <= eps per element
    l2_project_clip    x' = clip(project(x + alpha g / |g|)), onto |x' - origin|_2 <= eps per sample

clip(z) = min(max(z, low), high), channel by channel. ``frozen`` [N] marks samples that keep x, m and v. Results are new
tensors: who is interrupted never holds a half-written image. sign(0) = sign(NaN) = 0, g / |g| = 0 where |g| = 0; any
other NaN reaches x'. m and v are float64 beside float64 and float32 otherwise, whatever the storage of x.

float32 and float64 keep |x' - origin| <= eps as x's dtype computes it, to the last bit, where low <= origin <= high;
lengths, and what is stored in 16 bits, are kept to rounding.

Floor, float32: adam_clamp reads 4 and writes 3 numbers an element, 28 bytes (torch passes: about 100);
sign_project_clip moves 16; l2_project_clip 16 and its norms 8 and 12 more, from cache where a sample fits. On one core
adam_clamp takes 0.06 ms for 16 images of 3x32x32, torch passes 0.25 ms, of an iteration of 92 ms on ResNet-20: it gains
0.2 % there, and 2.3 ms against 17 ms for 16 images of 3x224x224. On a GPU it is one launch in place of a dozen.
"""

from __future__ import annotations

from math import prod
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastxai import _backend, _check
from fastxai.kernels import _native

__all__ = ["BETA_1", "BETA_2", "EPS", "adam_clamp", "corrections", "l2_project_clip", "moments", "sign_project_clip"]

BETA_1, BETA_2, EPS = 0.9, 0.999, 1e-8


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return (m, v) of a first step: zeros like x, in float32 at least."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return torch.zeros_like(x, dtype=dtype), torch.zeros_like(x, dtype=dtype)


def corrections(lr: float, t: int) -> tuple[float, float]:
    """Return (lr / (1-b1^t), 1 / sqrt(1-b2^t)): what the bias corrections of step t leave to multiply m and sqrt(v)."""
    return lr / (1 - BETA_1**t), (1 - BETA_2**t) ** -0.5


def geometry(x: Tensor) -> tuple[int, int, int, int]:
    """Return (samples, elements of one, channels, inner): element i of a sample has channel (i // inner) % channels."""
    inner = prod(x.shape[2:]) if x.is_contiguous() else 1
    return x.shape[0], prod(x.shape[1:]), x.shape[1], inner


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _finish(x: Tensor, moved: Tensor, box: tuple[Tensor, Tensor], frozen: Tensor | None) -> Tensor:
    low, high = (_wide(bound).view(1, -1, *[1] * (x.dim() - 2)) for bound in box)
    moved = torch.where(moved < low, low, torch.where(moved > high, high, moved)).to(x.dtype)
    return moved if frozen is None else torch.where(_by_sample(frozen, x), x, moved)


def _by_sample(values: Tensor, x: Tensor) -> Tensor:
    return values.view(-1, *[1] * (x.dim() - 1))


def _adam_clamp_reference(
    operands: tuple[Tensor, ...], rates: tuple[float, float] | Tensor, box: tuple[Tensor, Tensor], frozen: Tensor | None
) -> Tensor:
    x, gradient, m, v = operands
    g = gradient.to(m.dtype)
    new_m, new_v = BETA_1 * m + (1 - BETA_1) * g, BETA_2 * v + (1 - BETA_2) * g.square()
    size, correction = rates
    moved = _wide(x) - size * new_m / (new_v.sqrt() * correction + EPS)
    for old, new in ((m, new_m), (v, new_v)):
        old.copy_(new if frozen is None else torch.where(_by_sample(frozen, x), old, new))
    return _finish(x, moved, box, frozen)


def _sign_project_clip_reference(
    operands: tuple[Tensor, ...], alpha: float, eps: float, box: tuple[Tensor, Tensor], frozen: Tensor | None
) -> Tensor:
    x, origin, *gradient = (_wide(operand) for operand in operands)
    moved = x
    for g in gradient:
        moved = x + alpha * ((g > 0).to(x.dtype) - (g < 0).to(x.dtype))
    low, high = -_ball_end(-origin, eps), _ball_end(origin, eps)
    moved = torch.where(moved < low, low, torch.where(moved > high, high, moved))
    return _finish(operands[0], moved, box, frozen)


def _ball_end(origin: Tensor, eps: float) -> Tensor:
    """Return origin + eps, or where that was rounded to outside of the ball, a number or two before it."""
    end = origin + eps
    before = torch.maximum(end - end.abs() * torch.finfo(end.dtype).eps, origin)
    return torch.where(end - origin > eps, before, end)


def _l2_project_clip_reference(
    operands: tuple[Tensor, ...], alpha: float, eps: float, box: tuple[Tensor, Tensor], frozen: Tensor | None
) -> Tensor:
    x, origin, *gradient = (_wide(operand) for operand in operands)
    moved = x
    for g in gradient:
        length = _norm(g)
        moved = x + torch.where(length == 0, 0, alpha / torch.where(length == 0, 1, length)) * g
    offset = moved - origin
    length = _norm(offset)
    moved = torch.where(length > eps, origin + (eps / length) * offset, moved)
    return _finish(operands[0], moved, box, frozen)


def _norm(x: Tensor) -> Tensor:
    """Return the length of every sample, scaled by its largest element: squares of 1e-30 and 1e30 do not exist."""
    rows = x.flatten(1)
    largest = rows.abs().amax(1, keepdim=True) if rows.shape[1] else rows.sum(1, keepdim=True)
    usable = torch.where((largest > 0) & (largest < torch.inf), largest, 1)
    return _by_sample(((rows / usable).norm(dim=1) * usable[:, 0]), x)


def _triton() -> ModuleType:
    from fastxai.kernels.triton import attack_step

    return attack_step


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _check_box(x: Tensor, low: Tensor, high: Tensor, frozen: Tensor | None) -> tuple[tuple[Tensor, Tensor], Any]:
    _check.require(_check.tensor(x, "x").dim() > 1, "x", "have shape [N, C, ...]", list(x.shape))
    for bound, name in ((low, "low"), (high, "high")):
        _check.same_place(_check.shape(bound, name, (x.shape[1],)), name, x, "x")
    if frozen is not None:
        _check.shape(frozen, "frozen", (x.shape[0],))
        _check.require(frozen.dtype == torch.bool, "frozen", "be boolean", frozen.dtype, TypeError)
        _check.require(frozen.device == x.device, "frozen", f"be on x's device {x.device}", frozen.device)
        frozen = frozen.contiguous()
    return (low.contiguous(), high.contiguous()), frozen


def _check_like(y: Tensor, name: str, x: Tensor) -> None:
    _check.same_place(_check.shape(y, name, tuple(x.shape)), name, x, "x")


def adam_clamp(
    x: Tensor,
    gradient: Tensor,
    state: tuple[Tensor, Tensor],
    lr: float,
    t: int | Tensor,
    box: tuple[Tensor, Tensor],
    frozen: Tensor | None = None,
) -> Tensor:
    """Return the next x of Adam's descent, clamped; m and v are updated in place.

    Args:
        x: [N, C, ...].
        gradient: of x's shape, dtype and device.
        state: (m, v) from ``moments``, in x's memory order or another (then they are slower).
        lr: step size.
        t: number of this step, from 1; or what ``corrections(lr, t)`` gives, float64 [2] on x's device, which captured
            calls follow where numbers would be frozen (``lr`` is in it then).
        box: (low, high), [C] each, of x's dtype and device.
        frozen: [N] bool or None: samples that stay as they are.

    Raises:
        TypeError: frozen is not boolean.
        ValueError: shapes, dtypes or devices do not belong together, or t is below 1.
    """
    box, frozen = _check_box(x, *box, frozen)
    _check_like(gradient, "gradient", x)
    if isinstance(t, Tensor):
        rates: Any = _check.shape(t, "t", (2,))
        _check.require(t.dtype == torch.float64, "t", "be float64 where it is a tensor", t.dtype)
        _check.require(t.device == x.device, "t", f"be on x's device {x.device}", t.device)
    else:
        _check.require(isinstance(t, int) and t >= 1, "t", "be an int from 1", t)
        rates = corrections(lr, t)
    m, v = state
    for moment, name in ((m, "m"), (v, "v")):
        _check.shape(moment, name, tuple(x.shape))
        wanted = torch.promote_types(x.dtype, torch.float32)
        _check.require(moment.dtype == wanted, name, f"have dtype {wanted} beside x's {x.dtype}", moment.dtype)
        _check.require(moment.device == x.device, name, f"be on x's device {x.device}", moment.device)
    backend = _backend.pick(x)
    if backend == "reference":
        return _adam_clamp_reference((x, gradient, m, v), rates, box, frozen)
    dense_x, dense_g, dense_m, dense_v = _native.alike(x, gradient, m, v)
    if backend == "cpu":
        out, moving = torch.empty_like(dense_x), rates.numpy() if isinstance(t, Tensor) else None
        constants = BETA_1, BETA_2, EPS
        numbers = (*constants, *rates) if moving is None else lambda: (*constants, *moving.tolist())
        _native.launch(
            "cpu", "attack_step_adam", dense_x, _native.DTYPES[x.dtype], geometry(dense_x), numbers,
            *map(_address, (dense_x, dense_g, dense_m, dense_v, *box, frozen, out)),
        )  # fmt: skip
    else:  # Triton serves "cuda" too
        out = _triton().adam_clamp((dense_x, dense_g, dense_m, dense_v), rates, box, frozen)
    for moment, dense in ((m, dense_m), (v, dense_v)):
        if dense is not moment:
            moment.copy_(dense)
    return out


def sign_project_clip(
    x: Tensor,
    gradient: Tensor | None,
    origin: Tensor,
    alpha: float,
    eps: float,
    box: tuple[Tensor, Tensor],
    frozen: Tensor | None = None,
) -> Tensor:
    """Return x + alpha sign(g), projected onto the L_inf ball around the origin and clipped.

    Args:
        x: [N, C, ...].
        gradient: of x's shape, dtype and device, or None: x is projected where it is.
        origin: centre of the ball, of x's shape, dtype and device.
        alpha: step size; positive ascends.
        eps: radius.
        box: (low, high), [C] each, of x's dtype and device.
        frozen: [N] bool or None: samples that stay as they are.

    Raises:
        TypeError: frozen is not boolean.
        ValueError: shapes, dtypes or devices do not belong together, or eps is not finite and positive.
    """
    return _project("sign", x, gradient, origin, (alpha, eps), box, frozen)


def l2_project_clip(
    x: Tensor,
    gradient: Tensor | None,
    origin: Tensor,
    alpha: float,
    eps: float,
    box: tuple[Tensor, Tensor],
    frozen: Tensor | None = None,
) -> Tensor:
    """Return x + alpha g / |g|, projected onto the L2 ball around the origin and clipped.

    The bounds hold the origin, so clipping does not lead out of the ball. Arguments and errors as
    ``sign_project_clip``; lengths are over all elements of one sample.
    """
    return _project("l2", x, gradient, origin, (alpha, eps), box, frozen)


def _project(
    norm: str,
    x: Tensor,
    gradient: Tensor | None,
    origin: Tensor,
    sizes: tuple[float, float],
    box: tuple[Tensor, Tensor],
    frozen: Tensor | None,
) -> Tensor:
    box, frozen = _check_box(x, *box, frozen)
    _check_like(origin, "origin", x)
    if gradient is not None:
        _check_like(gradient, "gradient", x)
    alpha, eps = sizes[0], _check.positive(sizes[1], "eps")
    backend = _backend.pick(x)
    if backend == "reference":
        run = _sign_project_clip_reference if norm == "sign" else _l2_project_clip_reference
        return run((x, origin) if gradient is None else (x, origin, gradient), alpha, eps, box, frozen)
    x, gradient, origin = _native.alike(x, gradient, origin)
    if backend == "cpu":
        out = torch.empty_like(x)
        _native.launch(
            "cpu", f"attack_step_{norm}", x, _native.DTYPES[x.dtype], geometry(x), float(alpha), eps,
            *map(_address, (x, gradient, origin, *box, frozen, out)),
        )  # fmt: skip
        return out
    return getattr(_triton(), f"{norm}_project_clip")(x, gradient, origin, alpha, eps, box, frozen)
