"""Patterns: the linear example of the PatternNet paper, both estimators against plain formulas, streaming, resuming."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

import fastxai
from fastxai.explainers import Patterns, PatternTrainer


def conv_net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 5, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(5, 4, 2, bias=False),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 6),
        nn.Softplus(),
        nn.Linear(6, 3),
    ).double()


def written_out(weight: Tensor, patches: Tensor, y: Tensor, positive: bool) -> Tensor:
    """cov(x, y) / (w . cov(x, y)) by torch.cov, feature by feature; patches [M, D], y [M, O]."""
    rows = []
    for o, w in enumerate(weight.flatten(1)):
        counts = y[:, o] > 0 if positive else torch.ones_like(y[:, o], dtype=torch.bool)
        both = torch.cat([patches[counts], y[counts, o : o + 1]], 1)
        covariance = torch.cov(both.t(), correction=0)[:-1, -1]
        rows.append(covariance / (w @ covariance))
    return torch.stack(rows).view_as(weight)


def unfold(x: Tensor, conv: nn.Conv2d) -> Tensor:
    return F.unfold(x, conv.kernel_size, padding=conv.padding, stride=conv.stride).transpose(1, 2).flatten(0, 1)  # type: ignore[arg-type]


def test_the_signal_direction_is_recovered() -> None:
    """x = a_s y + a_d noise, a_s = (1, 0), a_d = (1, 1); w = (1, -1) filters the noise out, the pattern is a_s."""
    g = torch.Generator().manual_seed(0)
    signal, noise = torch.randn(20000, 1, generator=g).double(), torch.randn(20000, 1, generator=g).double()
    x = signal * torch.tensor([1.0, 0.0]).double() + noise * torch.tensor([1.0, 1.0]).double()
    layer = nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -1.0]]))
    for estimator in ("linear", "positive"):
        (pattern,) = PatternTrainer(layer, estimator).fit(x.split(1000)).tensors.values()
        assert torch.allclose(pattern, torch.tensor([[1.0, 0.0]]).double(), atol=0.03)
        assert torch.allclose((layer.weight * pattern).sum(), torch.ones(()).double())


@pytest.mark.parametrize("estimator", ["auto", "positive", "linear"])
def test_against_plain_covariances(estimator: str) -> None:
    model = conv_net()
    with torch.no_grad():
        model[8].bias += 1  # type: ignore[operator]  # some of its outputs are positive for every class
    x = torch.randn(40, 3, 10, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    got = PatternTrainer(model, estimator).fit(x.split([7, 20, 13])).tensors
    values, at = [x], x
    for layer in model:
        at = layer(at)
        values.append(at)
    hidden = estimator != "linear"
    for index, inputs in ((0, values[0]), (2, values[2])):
        conv = model[index]
        assert isinstance(conv, nn.Conv2d)
        y = values[index + 1].permute(0, 2, 3, 1).flatten(0, 2)
        expected = written_out(conv.weight, unfold(inputs, conv), y, hidden)
        assert torch.allclose(got[f"{index}.weight"], expected, rtol=1e-9, atol=1e-12)
    for index, positive in ((6, hidden), (8, estimator == "positive")):
        dense = model[index]
        assert isinstance(dense, nn.Linear)
        expected = written_out(dense.weight, values[index], values[index + 1], positive)
        assert torch.allclose(got[f"{index}.weight"], expected, rtol=1e-9, atol=1e-12)


def test_batch_norm_is_part_of_the_layer() -> None:
    """W o A is the same whether the norm is folded by the engine or by hand."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    model = model.double().eval()
    fused = nn.Sequential(nn.utils.fusion.fuse_conv_bn_eval(model[0], norm), *model[2:])  # type: ignore[arg-type]
    x = torch.randn(30, 2, 6, 6, dtype=torch.float64)
    ours, by_hand = (PatternTrainer(m).fit([x]).tensors["0.weight"] for m in (model, fused))
    assert torch.allclose(ours, by_hand, rtol=1e-9)


def test_a_dead_feature_gets_zeros() -> None:
    layer = nn.Linear(3, 2).double()
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([-1e3, 0.0]))
    model = nn.Sequential(layer, nn.ReLU(), nn.Linear(2, 2).double())
    pattern = PatternTrainer(model).fit([torch.randn(50, 3, dtype=torch.float64)]).tensors["0.weight"]
    assert (pattern[0] == 0).all() and (pattern[1] != 0).any() and pattern.isfinite().all()


def test_a_shared_layer_has_one_pattern() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layer(self.layer(x).relu()).relu())

    torch.manual_seed(0)
    model, x = Twice().double(), torch.randn(200, 4, dtype=torch.float64)
    got = PatternTrainer(model).fit(x.split(50)).tensors
    first = model.layer(x)
    inputs = torch.cat([x, first.relu()])
    expected = written_out(model.layer.weight, inputs, torch.cat([first, model.layer(first.relu())]), True)
    assert sorted(got) == ["head.weight", "layer.weight"]
    assert torch.allclose(got["layer.weight"], expected, rtol=1e-9)


def test_interrupted_and_resumed(tmp_path: Path) -> None:
    model, x = conv_net(), torch.randn(24, 3, 10, 10, dtype=torch.float64)
    whole = PatternTrainer(model).fit(x.split(4)).tensors
    file = tmp_path / "sums.safetensors"

    def stopping():
        yield from x.split(4)[:3]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        PatternTrainer(model).fit(stopping(), checkpoint=file)
    trainer = PatternTrainer(model)
    resumed = trainer.fit(x.split(4), checkpoint=file).tensors
    assert trainer.batches == 6
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    again = PatternTrainer(model).fit(x.split(4), checkpoint=file).tensors
    assert all(torch.equal(again[name], whole[name]) for name in whole)


def test_saved_and_loaded(tmp_path: Path) -> None:
    model = conv_net()
    patterns = PatternTrainer(model).fit([(torch.randn(9, 3, 10, 10, dtype=torch.float64), "labels")])
    patterns.save(tmp_path / "patterns.safetensors")
    loaded = Patterns.load(tmp_path / "patterns.safetensors")
    assert all(torch.equal(loaded.tensors[name], patterns.tensors[name]) for name in patterns.tensors)
    assert [file.name for file in tmp_path.iterdir()] == ["patterns.safetensors"]


def test_errors(tmp_path: Path) -> None:
    model = conv_net()
    with pytest.raises(ValueError, match="estimator must be one of"):
        PatternTrainer(model, "two")
    with pytest.raises(TypeError, match="net must be a compiled net"):
        PatternTrainer("model")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one batch"):
        PatternTrainer(model).fit([])
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="must hold fastxai patterns"):
        Patterns.load(tmp_path / "other.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"not one")
    with pytest.raises(ValueError, match="must be a safetensors file"):
        Patterns.load(tmp_path / "bad.safetensors")
    with pytest.raises(FileNotFoundError):
        Patterns.load(tmp_path / "none.safetensors")
    x = torch.randn(4, 3, 10, 10, dtype=torch.float64)
    PatternTrainer(model).fit([x], checkpoint=tmp_path / "sums.safetensors")
    with pytest.raises(ValueError, match="estimator 'linear'"):
        PatternTrainer(model, "linear").fit([x], checkpoint=tmp_path / "sums.safetensors")
    with pytest.raises(ValueError, match="parameters of this model"):
        PatternTrainer(nn.Linear(3, 2)).fit([x], checkpoint=tmp_path / "sums.safetensors")
    explainer = fastxai.explainers.PatternAttribution(model, Patterns({"0.weight": torch.zeros(5, 3, 3, 3).double()}))
    with pytest.raises(ValueError, match=r"pattern of shape \[4, 5, 2, 2\] for '2.weight'"):
        explainer.attribute(x)
    with pytest.raises(TypeError, match="Patterns"):
        fastxai.explainers.PatternAttribution(model, {})  # type: ignore[arg-type]
