"""SmoothGrad: any map, averaged over noisy copies of the input."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from fastxai import _check
from fastxai.engine import Net
from fastxai.explainers._base import Explainer, Target

__all__ = ["SmoothGrad"]

# Bytes of noisy input rows that exist at once.
_BUDGET = 2**28


class SmoothGrad(Explainer):
    """h(x) = 1/n sum_i h'(x + eps_i), eps_i ~ N(0, sigma^2), sigma = noise (x_max - x_min) ([M] section 4).

    h' is the map of the wrapped explainer, whichever it is. x_max and x_min are those of each input, as in Smilkov et
    al. 2017; [M] takes the highest and lowest values that an input can have, which is ``stdev=noise * (high - low)``.

    The noise depends on ``seed``, i and the shape of one input alone: it is the same for every input of a batch, at
    every call, in every dtype and on every device. So the map is one fixed function of x, however a batch is split.
    More samples extend the noise of fewer. sigma counts as a constant in derivatives.

    Attributes:
        explainer: gives h', of 1 + n rows for each input: a setting of its own may be one for all, not one for each.
        n_samples: n.
        noise: sigma over the range of each input.
        seed: of the noise, 0 .. 2^32 - 1.
        stdev: sigma itself, in the space of x, as Captum's ``NoiseTunnel``; stands in for ``noise`` if given.

    >>> model = torch.nn.Linear(4, 3)
    >>> h = fastxai.explainers.SmoothGrad(fastxai.explainers.Gradient(model), 20).attribute(torch.rand(1, 4), 2)
    >>> torch.allclose(h[0], model.weight[2])
    True
    """

    def __init__(
        self,
        explainer: Explainer,
        n_samples: int = 10,
        noise: float = 0.1,
        seed: int = 0,
        *,
        stdev: float | None = None,
    ) -> None:
        """Wrap ``explainer``.

        Raises:
            TypeError: explainer is no explainer.
            ValueError: a setting is out of range.
        """
        _check.instance(explainer, "explainer", Explainer, "be a fastxai explainer")
        super().__init__(explainer.net)
        _check.require(isinstance(n_samples, int) and n_samples > 0, "n_samples", "be a positive int", n_samples)
        for value, name in ((noise, "noise"), (0.0 if stdev is None else stdev, "stdev")):
            _check.not_negative(value, name)
        self.explainer, self.n_samples, self.noise, self.stdev = explainer, n_samples, noise, stdev
        self.seed = _seed(seed)
        self._drawn: tuple[Any, Tensor] | None = None

    def map_and_scores(
        self, x: Tensor, target: Target = None, *, net: Net | None = None, parameters: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Return (h(x), g(x)); arguments as in the base class.

        x itself is one more row of the same pass, which gives the scores. ``target=None`` is the class of x, not that
        of its noisy copies.
        """
        return self._smooth(x, target, self.net if net is None else net, parameters, self._draws(x, "x"))

    def attribute(self, inputs: Tensor, target: Target = None) -> Tensor:
        """Return the map h(x) of the noisy copies alone; arguments and errors as in the base class."""
        return self._smooth(inputs, target, self.net, True, self._draws(inputs, "inputs")[1:])[0]

    def _smooth(self, x: Tensor, target: Target, net: Net, parameters: bool, draws: Tensor) -> tuple[Tensor, Tensor]:
        """Return (h(x), the scores of the first draw's rows); only the last n draws count for the map."""
        count, spare = x.shape[0], len(draws) - self.n_samples
        if target is None:
            target = net.base(x).argmax(1)
        if isinstance(target, Tensor) and target.dim() > 0:
            _check.shape(target, "target", (count,))
        sigma, sums, scores = self._sigma(x), [], []
        chunk = max(1, _BUDGET // max(1, x.numel() * x.element_size()))
        for part in draws.split(chunk):
            rows = torch.addcmul(x, sigma, part[:, None])
            repeated = target.expand(count).repeat(len(part)) if isinstance(target, Tensor) else target
            h, g = self.explainer.map_and_scores(rows.flatten(0, 1), repeated, net=net, parameters=parameters)
            h = h.reshape(rows.shape)
            sums.append((h if scores else h[spare:]).sum(0))
            scores.append(g[:count])
        return torch.stack(sums).sum(0) / self.n_samples, scores[0]

    def _sigma(self, x: Tensor) -> Tensor:
        if self.stdev is not None:
            return x.new_full([1] * x.dim(), self.stdev)
        x, axes = x.detach(), tuple(range(1, x.dim()))
        return self.noise * (x.amax(axes, keepdim=True) - x.amin(axes, keepdim=True))

    @torch.inference_mode(False)
    def _draws(self, x: Tensor, name: str) -> Tensor:
        """Return [1 + n, ...]: zeros, which stand for x itself, and n standard normals; kept for the next call.

        Raises ValueError, under the argument's ``name``, for an x without a batch dimension.
        """
        _check.require(_check.tensor(x, name).dim() >= 2, name, "have shape [N, ...]", list(x.shape))
        key = self._key(x)
        if self._drawn is None or self._drawn[0] != key:
            self._drawn = key, self._normals(x)
        return self._drawn[1]

    def _key(self, x: Tensor) -> tuple[Any, ...]:
        return self.seed, self.n_samples, tuple(x.shape[1:]), x.dtype, x.device

    def _normals(self, x: Tensor) -> Tensor:
        source = torch.Generator().manual_seed(self.seed)
        rows = [torch.randn(x.shape[1:], generator=source, dtype=torch.float32) for _ in range(self.n_samples)]
        drawn = torch.stack([torch.zeros_like(rows[0]), *rows]).to(x.dtype)
        # From pinned memory a copy follows the device's queue: the host, which may be steps ahead, does not wait.
        return (drawn.pin_memory() if x.is_cuda else drawn).to(x.device, non_blocking=True)

    def redraw(self, x: Tensor, seed: int) -> Tensor:
        """Take the noise of another seed for inputs like x, in place: whatever recorded this map reads the new one."""
        self.seed, held = _seed(seed), self._drawn
        key = self._key(x)
        if held is None or held[0][1:] != key[1:]:
            return self._draws(x, "x")
        held[1].copy_(self._normals(x))
        self._drawn = key, held[1]
        return held[1]

    def another(self) -> SmoothGrad:
        """Return the same map with noise of its own, which ``redraw`` replaces."""
        made = copy.copy(self)
        made._drawn = None
        return made


def _seed(seed: int) -> int:
    # A generator tells no more than 32 bits apart.
    _check.require(isinstance(seed, int) and 0 <= seed < 2**32, "seed", "be an int in [0, 2^32)", seed)
    return seed
