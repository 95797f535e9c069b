"""[R]'s chain along paths: against dense Hessians, on quadratics where every link is known, on real attack paths."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from engine.nets import zoo
from theory.nets import SHAPE, SIZE, batch, dense, quadratic, smooth
from torch import Tensor, nn

import fastxai
from fastxai import Net, theory
from fastxai.theory import path

TARGET = torch.tensor([1, 0, 3])


def polyline(steps: int = 4, size: float = 0.3, n: int = 3) -> Tensor:
    g = torch.Generator().manual_seed(8)
    moves = size * torch.randn(steps, n, *SHAPE, generator=g, dtype=torch.float64)
    return torch.cat([batch(n)[None], batch(n) + moves.cumsum(0)])


def attack_path(net: Net, x: Tensor, steps: int, lr: float) -> Tensor:
    """The iterates of Adam towards the other image's map, by autograd on the differentiable gradient."""
    target = net.base(x).argmax(1)
    goal = net.gradient(x, target).abs().flip(0)
    goal = goal / goal.sum((1, 2, 3), keepdim=True)
    image = x.clone().requires_grad_()
    optimizer, points = torch.optim.Adam([image], lr), [x]
    for _ in range(steps):
        h = net.differentiable_gradient(image, target, parameters=False)[0].abs()
        (h / h.sum((1, 2, 3), keepdim=True) - goal).square().sum().mul(1e6).backward()
        optimizer.step()
        optimizer.zero_grad()
        points.append(image.detach().clamp(0, 1))
    return torch.stack(points)


def test_length_and_distance() -> None:
    points = polyline()
    length = sum((b - a).flatten(1).norm(dim=1) for a, b in pairwise(points))
    assert (theory.path_length(points) - length).abs().max() < 1e-12
    got = theory.path_change(smooth(), points, TARGET, samples=1)
    assert (got.length - length).abs().max() < 1e-12
    assert (got.distance - (points[-1] - points[0]).flatten(1).norm(dim=1)).abs().max() < 1e-12


def test_midpoint_rule_against_dense_hessians() -> None:
    points = polyline()
    segments, middles = points.diff(dim=0), (points[1:] + points[:-1]) / 2
    hs = torch.stack([dense(x, TARGET)[1] for x in middles])
    hd = (hs @ segments.flatten(2)[..., None])[..., 0]
    first, last = dense(points[0], TARGET)[0], dense(points[-1], TARGET)[0]
    got = theory.path_change(smooth(), points, TARGET, samples=10**6, steps=SIZE, probes=None)
    assert (got.change.flatten(1) - (last - first)).abs().max() < 1e-12
    assert (got.integral.flatten(1) - hd.sum(0)).abs().max() < 1e-12
    assert (got.total - hd.norm(dim=2).sum(0)).abs().max() < 1e-12
    # All nodes and all points of the polyline.
    seen = torch.cat([hs, torch.stack([dense(x, TARGET)[1] for x in points])])
    assert (got.spectral / torch.linalg.matrix_norm(seen, 2).amax(0) - 1).abs().max() < 1e-10
    assert (got.frobenius / seen.flatten(2).norm(dim=2).amax(0) - 1).abs().max() < 1e-10
    assert (got.frobenius_error == 0).all()
    steps = torch.stack([dense(x, TARGET)[0] for x in points]).diff(dim=0)
    assert (got.jumps - (steps - hd).norm(dim=2).sum(0)).abs().max() < 1e-12


def test_norms_are_taken_evenly_along_the_path_too() -> None:
    points = polyline()
    norms = torch.stack([torch.linalg.matrix_norm(dense(x, TARGET)[1], 2) for x in points])
    middles = (points[1:] + points[:-1]) / 2
    for samples in (1, 2, 3):
        at = torch.linspace(0, len(points) - 1, samples).round().long() if samples > 1 else torch.tensor([0])
        got = theory.path_change(smooth(), points, TARGET, samples=samples, steps=SIZE, probes=None)
        hs = torch.stack([dense(x, TARGET)[1] for x in middles])
        segments = points.diff(dim=0).flatten(2)
        gains = (hs @ segments[..., None])[..., 0].norm(dim=2) / segments.norm(dim=2)
        top = gains.topk(samples, dim=0).indices
        most = torch.linalg.matrix_norm(hs, 2).gather(0, top).amax(0)
        torch.testing.assert_close(got.spectral, torch.maximum(most, norms[at].amax(0)), rtol=1e-9, atol=0)


def test_equation_4_is_reached_as_nodes_are_added() -> None:
    closures = torch.stack([theory.path_change(smooth(), polyline(), TARGET, nodes=q).closure for q in (1, 2, 4, 12)])
    assert (closures[0] > 1e-3).all()
    assert (closures.diff(dim=0) < 0).all()
    assert (closures[-1] < 1e-8).all()
    fine = theory.path_change(smooth(), polyline(), TARGET, nodes=12)
    assert (fine.jumps < 1e-7 * fine.total).all()


def test_halving_meets_the_tolerance_and_no_more_than_that() -> None:
    points, fine = polyline(), theory.path_change(smooth(), polyline(), TARGET, nodes=12)
    for tolerance in (0.1, 1e-3, 1e-5):
        got = theory.path_change(smooth(), points, TARGET, tolerance=tolerance, samples=3)
        assert (got.jumps <= tolerance * got.moved * (1 + 1e-9)).all() and (got.closure <= tolerance).all()
        assert (got.total / fine.total - 1).abs().max() < 2 * tolerance
        assert (got.change - fine.change).abs().max() < 1e-12 and (got.length - fine.length).abs().max() < 1e-12
        assert all((ratio < 1).all() for name, ratio in got.ratios.items() if "Frobenius" not in name)
        for n in range(3):
            one = theory.path_change(smooth(), points[:, n : n + 1], TARGET[n : n + 1], tolerance=tolerance, samples=3)
            for name in ("integral", "total", "jumps", "spectral"):
                assert (getattr(one, name)[0] - getattr(got, name)[n]).abs().max() < 1e-12, name
    plain, loose = (theory.path_change(smooth(), points, TARGET, tolerance=t) for t in (None, 1e9))
    assert torch.equal(plain.jumps, loose.jumps) and torch.equal(plain.integral, loose.integral)
    still = theory.path_change(smooth(), points[[0, 0]], TARGET, tolerance=0.01)
    assert (still.total == 0).all() and (still.jumps == 0).all()


@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("beta", [100.0, 1000.0])
def test_halving_finds_peaks_that_no_node_has_met(beta: float, nodes: int) -> None:
    """A sharp softplus has all its curvature in a sliver of the segment."""
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(SIZE, 20), nn.ReLU(), nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 4)]
    net = fastxai.compile(nn.Sequential(*layers).double(), activation="softplus", beta=beta)
    plain = theory.path_change(net, polyline(), TARGET, nodes=nodes, samples=1)
    got = theory.path_change(net, polyline(), TARGET, nodes=nodes, samples=1, tolerance=0.02)
    assert (plain.closure > 0.1).any()
    assert (got.jumps <= 0.02 * got.moved).all() and (got.closure <= 0.02).all()


def test_halving_ends_at_roundings(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(SIZE, 20), nn.ReLU(), nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 4))
    net, rows, inner = fastxai.compile(model, activation="softplus", beta=5.0), [], path.flat_hvp
    monkeypatch.setattr(path, "flat_hvp", lambda net, x, target: rows.append(len(x)) or inner(net, x, target))
    got = theory.path_change(net, polyline().float(), TARGET, tolerance=1e-9, samples=1, steps=1, probes=1)
    assert sum(rows) < 3000 and (got.closure < 1e-4).all()


def test_maps_that_jump_are_refused_a_tolerance() -> None:
    layers = [nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 3)]
    net = fastxai.compile(nn.Sequential(*layers).double(), activation="softplus", beta=2.0)
    with pytest.raises(ValueError, match="tolerance must be None where maps jump"):
        theory.path_change(net, polyline(), 1, tolerance=0.02)


def test_every_link_holds_and_the_whole_is_their_product() -> None:
    got = theory.path_change(smooth(), polyline(), TARGET, nodes=6, steps=SIZE, probes=None)
    ratios = got.ratios
    assert len(ratios) == 4
    assert all((r > 0).all() and (r < 1).all() for r in ratios.values())
    first, second, third, whole = ratios.values()
    assert (first * second * third / whole - 1).abs().max() < 1e-6
    assert str(got).count("\n") == 11 and "eq. 4 missed by" in str(got)


def test_one_lanczos_step_still_bounds_the_gain() -> None:
    """The norm is never below what the path itself has shown of it."""
    got = theory.path_change(smooth(), polyline(), TARGET, nodes=2, samples=1, steps=1)
    assert (got.ratios["integral / spectral"] <= 1).all()


def test_on_a_quadratic_along_its_sharpest_direction_every_link_is_tight() -> None:
    net = quadratic([3.0, -2.0, 1.0], rotated=False)
    path = torch.linspace(0, 1, 6, dtype=torch.float64)[:, None, None] * torch.tensor([[[2.0, 0, 0], [0, 0, 2.0]]])
    got = theory.path_change(net, path, 0, probes=None)
    assert got.closure.max() < 1e-12 and got.jumps.max() < 1e-12
    assert (got.ratios["change / (integral + jumps)"] - 1).abs().max() < 1e-12
    assert (got.ratios["integral / spectral"] - torch.tensor([1, 1 / 3], dtype=torch.float64)).abs().max() < 1e-12
    assert (got.ratios["spectral / Frobenius"] - 3 / 14**0.5).abs().max() < 1e-12
    there_and_back = torch.cat([path, path[:-1].flip(0)])
    closed = theory.path_change(net, there_and_back, 0)
    assert closed.moved.max() < 1e-12 and (closed.total - 2 * got.total).abs().max() < 1e-12


def test_segments_without_length_change_nothing() -> None:
    points = polyline()
    still = points[[0, 0, 1, 2, 2, 2, 3, 4]]
    a, b = (theory.path_change(smooth(), p, TARGET, nodes=2, samples=2) for p in (points, still))
    for name in ("change", "integral", "total", "jumps", "length", "spectral", "frobenius"):
        assert (getattr(a, name) - getattr(b, name)).abs().max() < 1e-12, name
    nowhere = theory.path_change(smooth(), points[[0, 0]], TARGET)
    assert (nowhere.total == 0).all() and (nowhere.moved == 0).all() and (nowhere.spectral > 0).all()


def test_samples_do_not_see_each_other() -> None:
    points = polyline()
    whole = theory.path_change(smooth(), points, TARGET, nodes=2)
    for n in range(3):
        one = theory.path_change(smooth(), points[:, n : n + 1], TARGET[n : n + 1], nodes=2)
        for name in ("integral", "total", "jumps", "spectral", "frobenius"):
            assert (getattr(one, name)[0] - getattr(whole, name)[n]).abs().max() < 1e-12, name


def test_max_pools_jump_and_the_jumps_are_counted() -> None:
    """No number of nodes closes eq. 4 across a switch; with the jumps the first link holds."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 3)]
    net = fastxai.compile(nn.Sequential(*layers).double(), activation="softplus", beta=2.0)
    coarse, fine = (theory.path_change(net, polyline(), 1, nodes=q, samples=1) for q in (24, 48))
    assert (fine.closure > 0.05).all()
    assert (fine.jumps / coarse.jumps - 1).abs().max() < 0.2
    assert (fine.ratios["change / (integral + jumps)"] <= 1).all()
    assert (fine.moved > fine.total).any()


def test_real_attack_path_closes_within_two_percent() -> None:
    """ResNet-20 on CIFAR-10's classes, softplus of beta 10: it has no max-pool."""
    model, _ = zoo("resnet20", torch.float32)
    images, _ = fastxai.data.demo_photos()
    net = fastxai.compile(model, activation="softplus", beta=10.0)
    points = attack_path(net, images, steps=6, lr=1e-3)
    got = theory.path_change(net, points, nodes=1, samples=1, steps=8, probes=4)
    assert (got.moved > 0).all()
    assert (got.closure < 0.02).all(), got.closure
    assert all((r < 1).all() for r in got.ratios.values()), str(got)


@pytest.mark.parametrize("n", [0, 1])
def test_small_batches(n: int) -> None:
    got = theory.path_change(smooth(), polyline()[:, :n], nodes=2)
    assert got.integral.shape == (n, *SHAPE) and got.closure.shape == (n,)
    assert all(r.shape == (n,) for r in got.ratios.values())
    rows = str(got).splitlines()
    assert len(rows) == 12 and all(row.endswith(" nan") == (n == 0) for row in rows)


def test_strided_paths() -> None:
    points = polyline()
    strided = points.permute(3, 0, 1, 2, 4).contiguous().permute(1, 2, 3, 0, 4)
    assert not strided.is_contiguous()
    a, b = (theory.path_change(smooth(), p, TARGET) for p in (points, strided))
    assert (a.integral - b.integral).abs().max() < 1e-12 and (a.jumps - b.jumps).abs().max() < 1e-12


def test_bad_arguments() -> None:
    net, points = smooth(), polyline()
    with pytest.raises(ValueError, match=r"points must have shape \[T \+ 1, N, ...\] with T >= 1"):
        theory.path_change(net, points[:1])
    with pytest.raises(TypeError, match=r"points must be a torch\.Tensor, got list"):
        theory.path_change(net, [points])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="points must have a floating point dtype"):
        theory.path_length(points.long())
    for shape in ((3, 2), (3,), ()):
        with pytest.raises(ValueError, match=r"points must have shape \[T, N, ...\], got \["):
            theory.path_length(torch.rand(shape))
    with pytest.raises(ValueError, match="nodes must be an int of at least 1, got 0"):
        theory.path_change(net, points, nodes=0)
    with pytest.raises(ValueError, match="tolerance must be finite and positive, got 0"):
        theory.path_change(net, points, tolerance=0)
    with pytest.raises(ValueError, match="samples must be an int of at least 1"):
        theory.path_change(net, points, samples=0)
    with pytest.raises(ValueError, match=r"target must have shape \[3\]"):
        theory.path_change(net, points, torch.arange(5))
