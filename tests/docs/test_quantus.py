"""The explain_func of docs/migrate.md, called as the metrics of Quantus 0.6 call theirs, without Quantus."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fastxai

PAGE = Path(__file__).parents[2] / "docs" / "migrate.md"
Arrays = tuple[np.ndarray, np.ndarray]


class Metric:
    """What Quantus does to an explain_func: keywords only, a device among them, checks, then another call or more."""

    def __init__(self, explain_func: Callable[..., Any], device: str | None = None, **explain_func_kwargs: Any) -> None:
        self.explain_func = explain_func
        self.kwargs = explain_func_kwargs | ({} if device is None else {"device": device})

    def explain(self, model: nn.Module, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        a = self.explain_func(model=model, inputs=x, targets=y, **self.kwargs)
        assert type(a) is np.ndarray
        assert a.shape == x.shape  # Quantus takes reduced channels too
        assert len(set(a.flatten().tolist())) > 1
        assert not np.all(a < 0)
        return a

    def max_sensitivity(self, model: nn.Module, x: np.ndarray, y: np.ndarray, nr_samples: int = 3) -> np.ndarray:
        """Largest change under noise; NumPy's noise makes float64 arrays of float32 ones."""
        a, source, worst = self.explain(model, x, y), np.random.default_rng(0), np.zeros(len(x))
        for _ in range(nr_samples):
            perturbed = x + source.uniform(-0.2, 0.2, x.shape)
            assert perturbed.dtype == np.float64
            change = (self.explain(model, perturbed, y) - a).reshape(len(x), -1)
            worst = np.maximum(worst, np.linalg.norm(change, axis=1) / np.linalg.norm(a.reshape(len(x), -1), axis=1))
        return worst

    def random_logit(self, model: nn.Module, x: np.ndarray, y: np.ndarray) -> Arrays:
        """Maps of the labels and of other ones."""
        return self.explain(model, x, y), self.explain(model, x, np.asarray([(label + 1) % 4 for label in y]))

    def mprt(self, model: nn.Module, x: np.ndarray, y: np.ndarray) -> list[Arrays]:
        """Randomise a copy's layers from the top, one more each time; return its maps beside their truth."""
        changed, pairs = copy.deepcopy(model), []
        for layer in reversed([m for m in changed.modules() if hasattr(m, "reset_parameters")]):
            torch.manual_seed(1)
            layer.reset_parameters()  # type: ignore[operator]
            pairs.append((self.explain(changed, x, y), truth(changed, x, y)))
        return pairs


def truth(model: nn.Module, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The gradient by autograd."""
    like = next(model.parameters())
    leaf = torch.tensor(x, dtype=like.dtype).requires_grad_()
    score = model(leaf).gather(1, torch.tensor(y)[:, None]).sum()
    return torch.autograd.grad(score, leaf)[0].numpy()


@pytest.fixture(scope="module")
def explain_func() -> Callable[..., np.ndarray]:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (body,) = (block for block in blocks if "def explain_func" in block)
    names: dict[str, Any] = {"torch": torch, "fastxai": fastxai}
    exec(compile(body, str(PAGE), "exec"), names)
    return names["explain_func"]


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4)).eval()


@pytest.fixture
def batch() -> Arrays:
    return np.random.default_rng(4).random((5, 2, 6, 6), dtype=np.float32), np.array([3, 0, 1, 2, 1])


def close(a: np.ndarray, b: np.ndarray) -> None:
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * np.abs(b).max())


@pytest.mark.parametrize("device", [None, "cpu"])
def test_the_default_is_the_gradient_in_the_models_dtype(explain_func, model, batch, device):
    a = Metric(explain_func, device).explain(model, *batch)
    close(a, truth(model, *batch))
    assert a.dtype == np.float32
    assert Metric(explain_func, device).explain(model.double(), *batch).dtype == np.float64


def test_options_choose_the_map_and_its_settings(explain_func, model, batch):
    x, y = torch.tensor(batch[0]), torch.tensor(batch[1])
    options = {"composite": "epsilon_gamma_box", "low": 0.0, "high": 1.0}
    a = Metric(explain_func, "cpu", method=fastxai.LRP, **options).explain(model, *batch)
    close(a, fastxai.LRP(model, **options).attribute(x, y).detach().numpy())
    a = Metric(explain_func, method=fastxai.IntegratedGradients, n_steps=7).explain(model, *batch)
    close(a, fastxai.IntegratedGradients(model, n_steps=7).attribute(x, y).detach().numpy())
    noisy = Metric(explain_func, method=lambda net: fastxai.SmoothGrad(fastxai.Gradient(net), 3)).explain(model, *batch)
    close(noisy, fastxai.SmoothGrad(fastxai.Gradient(model), 3).attribute(x, y).detach().numpy())


def test_perturbed_inputs_and_other_targets(explain_func, model, batch):
    metric = Metric(explain_func, "cpu", method=fastxai.InputXGradient)
    sensitivity = metric.max_sensitivity(model, *batch)
    assert sensitivity.shape == (5,) and (sensitivity > 0).all() and (sensitivity < 10).all()
    a, other = Metric(explain_func, "cpu").random_logit(model, *batch)
    close(a, truth(model, *batch))
    close(other, truth(model, batch[0], (batch[1] + 1) % 4))


def test_a_randomised_copy_is_seen_anew_each_time(explain_func, model, batch):
    metric = Metric(explain_func, "cpu")
    before = metric.explain(model, *batch)
    pairs = metric.mprt(model, *batch)
    assert len(pairs) == 2
    for a, expected in pairs:
        close(a, expected)
        assert np.abs(a - before).max() > 1e-2
    close(metric.explain(model, *batch), before)


def test_arrays_of_any_layout_and_one_sample_with_one_label(explain_func, model, batch):
    x, y = batch
    expected = truth(model, x, y)
    for other in (np.asfortranarray(x), x[:, :, ::-1][:, :, ::-1], np.moveaxis(np.moveaxis(x, 1, -1).copy(), -1, 1)):
        close(explain_func(model=model, inputs=other, targets=y), expected)
    close(explain_func(model=model, inputs=np.flip(x, 3), targets=y.tolist()), truth(model, np.flip(x, 3).copy(), y))
    close(explain_func(model=model, inputs=x[:1], targets=y[0]), expected[:1])
