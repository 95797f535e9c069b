"""Random small networks composed of the node types agree with autograd."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from engine.nets import gradient, oracle, randomise
from engine.sandwich import check, sample
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

ACTS = (F.relu, F.relu_, torch.relu_, F.relu6, torch.sigmoid, torch.tanh_, F.silu, F.gelu, F.elu, F.softplus)


KINDS = (
    *("conv", "act", "act", "norm", "pool", "add", "mul", "cat"),
    *("split", "shift", "pad", "again", "shuffle", "gate"),
)


class Program(nn.Module):
    """Layers drawn one after the other; any layer may read an earlier result or run an earlier layer's module again."""

    def __init__(self, data: st.DataObject, acts: Any, depth: int) -> None:
        super().__init__()
        self.steps: list[Any] = []
        self.layers = nn.ModuleList()
        draw, earlier = data.draw, [torch.zeros(1, 2, 7, 6)]
        for _ in range(depth):
            step = self._choose(draw, acts, earlier)
            self.steps.append(step)
            with torch.no_grad():
                out = step([t.clone() for t in earlier])
            if 0 < out[0].numel() <= 500 and out.dim() == 4 and min(out.shape[2:]) >= 2:
                earlier.append(out)
            else:
                self.steps.pop()
        self.head = nn.Linear(earlier[-1].numel(), 3)

    def _module(self, layer: nn.Module) -> nn.Module:
        self.layers.append(layer)
        return layer

    def _choose(self, draw: Any, acts: Any, earlier: list[Tensor]) -> Any:
        x = earlier[-1]
        channels, (height, width) = x.shape[1], x.shape[2:]
        back = draw(st.integers(0, len(earlier) - 1))
        alike = [i for i, t in enumerate(earlier) if t.shape == x.shape]
        match draw(st.sampled_from(KINDS)):
            case "conv":
                kernel = draw(st.integers(1, min(3, height, width)))
                groups = draw(st.sampled_from([1, channels]))
                wide = channels * draw(st.integers(1, 2)) if groups > 1 else draw(st.integers(1, 5))
                stride, bias = draw(st.integers(1, 2)), draw(st.booleans())
                options = {"stride": stride, "padding": draw(st.integers(0, 2)), "groups": groups, "bias": bias}
                layer = self._module(nn.Conv2d(channels, wide, kernel, **options))
                return lambda t: layer(t[-1])
            case "norm":
                layer = self._module(nn.BatchNorm2d(channels, affine=draw(st.booleans())))
                layer.eval()
                return lambda t: layer(t[-1])
            case "pool":
                pool = draw(st.sampled_from([F.max_pool2d, F.avg_pool2d]))
                stride, padding, ceil = draw(st.integers(1, 2)), draw(st.integers(0, 1)), draw(st.booleans())
                return lambda t: pool(t[-1], 2, stride, padding, ceil_mode=ceil)
            case "add":
                other, c = draw(st.sampled_from(alike)), draw(st.sampled_from([1, 0.5, -0.3]))
                return lambda t: t[-1] + c * t[other]
            case "mul":
                other = draw(st.sampled_from(alike))
                return lambda t: torch.tanh(t[-1]) * t[other]
            case "cat":
                if earlier[back].shape[2:] != x.shape[2:]:
                    return lambda t: t[-1] * 1.5 - 0.5
                return lambda t: torch.cat([t[-1], t[back]], 1)
            case "split":
                part = draw(st.integers(0, 1))
                return lambda t: t[-1].chunk(2, 2)[part]
            case "shift":
                step = draw(st.integers(1, 2))
                return lambda t: t[-1][:, :, ::step, 1:].flip(1)
            case "pad":
                mode = draw(st.sampled_from(["constant", "reflect", "replicate", "circular"]))
                return lambda t: F.pad(t[-1], (1, 0, 1, 1), mode=mode)
            case "again":
                same = [m for m in self.layers if isinstance(m, nn.Conv2d) and m.in_channels == channels]
                if not same or same[-1].kernel_size[0] > min(height, width):
                    return lambda t: -t[-1]
                layer = same[-1]
                return lambda t: layer(t[-1])
            case "shuffle":
                return lambda t: t[-1].permute(0, 1, 3, 2).contiguous()
            case "gate":
                return lambda t: t[-1] * t[-1].mean((2, 3), keepdim=True).sigmoid()
            case _:
                act = draw(st.sampled_from(acts))
                return lambda t: act(t[-1] * 1)

    def forward(self, x: Tensor) -> Tensor:
        results = [x]
        for step in self.steps:
            results.append(step(results))
        return self.head(torch.tanh(results[-1]).flatten(1))


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_random_networks(data: st.DataObject) -> None:
    model = randomise(Program(data, ACTS, data.draw(st.integers(1, 9)))).double()
    beta = data.draw(st.sampled_from([None, 1.0, 5.0]))
    kind = data.draw(st.sampled_from(["softplus", "curvature"]))
    x = sample(data.draw(st.integers(1, 3)))
    # A dead network has nothing to compare.
    assume(float(gradient(oracle(model, beta, kind), x, 0).norm()) > 1e-6)
    check(model, x, beta, kind, curved=False)
