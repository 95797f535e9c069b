"""Objectives: values and gradients against losses written out in plain autograd, and what wraps them."""

from __future__ import annotations

import copy
import os
import socket
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

import fastxai
from fastxai import _random
from fastxai.training import Batch, CrossEntropy, HessianNorm, Objective, Term

ZETA = 1e-2


def mlp(norm: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    middle = [nn.BatchNorm1d(8)] if norm else []
    layers = [nn.Linear(6, 8), *middle, nn.Softplus(3.0, threshold=1e9), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 4)]
    return nn.Sequential(*layers).double()


def batch(n: int = 5) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(3)
    return torch.randn(n, 6, generator=g, dtype=torch.float64), torch.randint(4, (n,), generator=g)


def written_out(model: nn.Module, x: Tensor, y: Tensor, term: HessianNorm, step: int = 0) -> Tensor:
    """CE + zeta mean ||H v||^2 by three backward passes."""
    v = _random.probes(term.kind, x, (term.seed, step), torch.arange(len(x)), range(term.probes))
    x = x.detach().requires_grad_()
    scores = model(x)
    picked = {"winner": scores.max(1).values, "label": scores.gather(1, y[:, None])[:, 0]}
    value = F.cross_entropy(scores, y, reduction="sum") if term.of == "loss" else picked[term.of].sum()
    (g,) = torch.autograd.grad(value, x, create_graph=True)
    hv = torch.stack([torch.autograd.grad(g, x, one, create_graph=True)[0] for one in v])
    return F.cross_entropy(scores, y) + ZETA * hv.square().sum(2).mean()


@pytest.mark.parametrize("of", ["winner", "label", "loss"])
@pytest.mark.parametrize("probes, kind", [(1, "gaussian"), (3, "rademacher")])
def test_equals_three_backward_passes(of: str, probes: int, kind: str) -> None:
    model, (x, y) = mlp(), batch()
    term = HessianNorm(probes, kind, of, seed=5)
    objective = Objective(fastxai.compile(model), [CrossEntropy(), ZETA * term])
    for step in range(2):
        loss, want = objective(x, y), written_out(model, x, y, term, step)
        torch.testing.assert_close(loss, want, rtol=1e-12, atol=0)
        gots, wants = (torch.autograd.grad(value, list(model.parameters())) for value in (loss, want))
        for got, wanted in zip(gots, wants, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-13)
    assert objective.step == 2 and set(objective.parts) == {"cross_entropy", "hessian_norm"}


def test_the_pass_is_shared_where_modes_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without batch norm in training mode the cross-entropy runs nothing of its own; with it, its own forward."""
    x, y = batch()
    for norm, training, runs in ((False, True, 0), (True, False, 0), (True, True, 1)):
        model, calls = mlp(norm), []
        model.train(training)
        net = fastxai.compile(model)
        own = net.differentiable_scores
        monkeypatch.setattr(net, "differentiable_scores", lambda x, own=own, calls=calls: calls.append(1) or own(x))
        objective = Objective(net, [CrossEntropy(), HessianNorm()])
        objective.train(training)
        before = copy.deepcopy(model.state_dict())
        objective(x, y).backward()
        assert len(calls) == runs
        if norm:
            moved = not torch.equal(before["1.running_mean"], model.state_dict()["1.running_mean"])
            assert moved == training
        monkeypatch.undo()


class Dropping(nn.Module):
    """Asks for the mode in a method of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp()

    def forward(self, x: Tensor) -> Tensor:
        return self.dropped(self.inner(x))

    def dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, self.training)


def normed() -> nn.Module:
    torch.manual_seed(0)
    norm = nn.InstanceNorm1d(2, track_running_stats=True)
    return nn.Sequential(nn.Unflatten(1, (2, 3)), norm, nn.Flatten(), mlp()).double()


@pytest.mark.parametrize("make", [Dropping, normed, lambda: torch.jit.script(nn.Sequential(mlp(), nn.Dropout()))])
def test_whatever_asks_for_the_mode_runs_its_own_pass(make: Callable[[], nn.Module]) -> None:
    """The cross-entropy is that of the mode, however a model comes to depend on it."""
    model, (x, y) = make(), batch()
    objective = Objective(fastxai.compile(model, fallback=True), [CrossEntropy(), HessianNorm(of="label")])
    for training in (True, False):
        model.train(training)
        before = copy.deepcopy(model.state_dict())
        torch.manual_seed(1)
        objective(x, y)
        model.load_state_dict(before)
        torch.manual_seed(1)
        torch.testing.assert_close(objective.parts["cross_entropy"], F.cross_entropy(model(x), y).detach())


class MapNorm(Term):
    """Runs the engine where it is evaluated."""

    def __call__(self, batch: Batch) -> Tensor:
        return batch.net.differentiable_gradient(batch.x, batch.y)[0].square().sum(1).mean()


@pytest.mark.parametrize("fallback", [False, True])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_statistics_that_move_do_not_disturb_the_gradient(order: tuple[int, ...], fallback: bool) -> None:
    """Maps and penalties see the statistics from before the step's own forward, in their backward too."""
    model, (x, y) = mlp(norm=True), batch()
    model[1].running_mean.uniform_(-1, 1)  # type: ignore[union-attr, operator]
    reference, term = copy.deepcopy(model), HessianNorm(2, of="label", seed=5)
    terms = [CrossEntropy(), ZETA * term, 0.1 * MapNorm()]
    objective = Objective(fastxai.compile(model, fallback=fallback), [terms[i] for i in order])
    for step in range(2):
        evaluated, leaf = copy.deepcopy(reference).eval(), x.clone().requires_grad_()
        scores = torch.func.functional_call(evaluated, dict(reference.named_parameters()), (leaf,))
        (g,) = torch.autograd.grad(scores.gather(1, y[:, None]).sum(), leaf, create_graph=True)
        v = _random.probes(term.kind, x, (5, step), torch.arange(5), range(2))
        hv = torch.stack([torch.autograd.grad(g, leaf, one, create_graph=True)[0] for one in v])
        want = ZETA * hv.square().sum(2).mean() + 0.1 * g.square().sum(1).mean() + F.cross_entropy(reference(x), y)
        wanted = torch.autograd.grad(want, list(reference.parameters()))
        loss = objective(x, y)
        torch.testing.assert_close(loss, want, rtol=1e-12, atol=0)
        for got, one in zip(torch.autograd.grad(loss, list(model.parameters())), wanted, strict=True):
            torch.testing.assert_close(got, one, rtol=1e-10, atol=1e-14)
        for mine, theirs in zip(model.buffers(), reference.buffers(), strict=True):
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize("fallback", [False, True])
def test_a_parametrisation_that_moves_in_training(fallback: bool) -> None:
    """Spectral norm turns its vectors at every training forward; maps and penalties see them as they were before."""
    model, (x, y) = mlp(), batch()
    torch.nn.utils.parametrizations.spectral_norm(model[0])
    reference, term = copy.deepcopy(model), HessianNorm(2, of="label", seed=5)
    objective = Objective(fastxai.compile(model, fallback=fallback), [CrossEntropy(), ZETA * term])
    for step in range(2):
        reference.eval()
        want = written_out(reference, x, y, term, step) - F.cross_entropy(reference(x), y)
        want = want + F.cross_entropy(reference.train()(x), y)
        loss = objective(x, y)
        torch.testing.assert_close(loss, want, rtol=1e-12, atol=0)
        gots, wants = (
            torch.autograd.grad(value, list(m.parameters())) for value, m in ((loss, model), (want, reference))
        )
        for got, wanted in zip(gots, wants, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-13)


def test_direction_of_ones_own() -> None:
    """CURE's direction: the normalised gradient of the loss, which counts as constant."""
    model, (x, y) = mlp(), batch()
    net = fastxai.compile(model)

    def cure(net: fastxai.Net, x: Tensor, y: Tensor) -> Tensor:
        leaf = x.detach().requires_grad_()
        (g,) = torch.autograd.grad(F.cross_entropy(net.differentiable_scores(leaf), y, reduction="sum"), leaf)
        return g.sign() / g.sign().norm(dim=1, keepdim=True)

    loss = Objective(net, [HessianNorm(of="loss", direction=cure)])(x, y)
    leaf, v = x.detach().requires_grad_(), cure(net, x, y)
    (g,) = torch.autograd.grad(F.cross_entropy(model(leaf), y, reduction="sum"), leaf, create_graph=True)
    (hv,) = torch.autograd.grad(g, leaf, v, create_graph=True)
    want = hv.square().sum(1).mean()
    torch.testing.assert_close(loss, want, rtol=1e-12, atol=0)
    for got, wanted in zip(
        *(torch.autograd.grad(t, list(model.parameters()), materialize_grads=True) for t in (loss, want)), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("n", [1, 5])
def test_the_sum_over_the_batch_is_its_mean_times_its_size(n: int) -> None:
    model, (x, y) = mlp(), batch()
    mean, total = (
        Objective(fastxai.compile(model), [HessianNorm(2, seed=3, reduction=how)])(x[:n], y[:n])
        for how in ("mean", "sum")
    )
    torch.testing.assert_close(total, n * mean, rtol=1e-14, atol=0)


def test_estimate_is_unbiased() -> None:
    model, (x, y) = mlp(), batch()
    net = fastxai.compile(model)
    exact = net.hessian_norm(x, None, None).square().mean()
    value = Objective(net, [HessianNorm(4000, "gaussian")])(x, y)
    torch.testing.assert_close(value, exact, rtol=0.05, atol=0)


def test_untraceable_model_gives_the_same_numbers() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = mlp()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x if float(x.detach().sum()) > -1e9 else -x)

    (x, y), gradients = batch(), []
    for model in (mlp(), Branching()):
        net = fastxai.compile(model, fallback=isinstance(model, Branching))
        objective = Objective(net, [CrossEntropy(), ZETA * HessianNorm(2)])
        gradients.append(torch.autograd.grad(objective(x, y), list(model.parameters())))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-14)


def test_gradient_accumulation_and_clipping() -> None:
    model, (x, y) = mlp(), batch(6)
    objective = Objective(fastxai.compile(model), [CrossEntropy(), ZETA * HessianNorm(direction=lambda n, x, y: x)])
    whole = torch.autograd.grad(objective(x, y), list(model.parameters()))
    for part in (slice(0, 3), slice(3, 6)):
        (objective(x[part], y[part]) / 2).backward()
    for p, want in zip(model.parameters(), whole, strict=True):
        torch.testing.assert_close(p.grad, want, rtol=1e-10, atol=1e-14)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    assert norm > 1e-3
    assert torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm() < 1.001e-3


def test_bf16_autocast_gives_finite_gradients_close_to_float32() -> None:
    model, (x, y) = mlp(norm=True).float(), batch()
    objective = Objective(fastxai.compile(model), [CrossEntropy(), ZETA * HessianNorm()])
    objective.eval()
    want = torch.autograd.grad(objective(x.float(), y), list(model.parameters()))
    objective.train(True)
    objective.step = 0
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective(x.float(), y)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert len(want) == len(list(model.parameters()))


def test_frozen_parameters_get_no_gradient() -> None:
    model, (x, y) = mlp(), batch()
    model[0].weight.requires_grad_(False)
    Objective(fastxai.compile(model), [CrossEntropy(), HessianNorm()])(x, y).backward()
    assert model[0].weight.grad is None and model[0].bias.grad is not None


def test_probes_belong_to_samples() -> None:
    model, (x, y) = mlp(), batch(6)
    objective = Objective(fastxai.compile(model), [HessianNorm(seed=1)]).eval()
    index = torch.arange(6) + 100
    whole = objective(x, y, index)
    parts = torch.stack([objective(x[i : i + 2], y[i : i + 2], index[i : i + 2]) for i in (0, 2, 4)])
    torch.testing.assert_close(parts.mean(), whole)
    shuffled = torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(objective(x[shuffled], y[shuffled], index[shuffled]), whole)
    assert objective(x, y, index + 1) != whole


def test_state_dict_holds_the_step() -> None:
    objective = Objective(fastxai.compile(mlp()), [CrossEntropy()])
    objective(*batch())
    other = Objective(fastxai.compile(mlp()), [CrossEntropy()])
    other.load_state_dict(objective.state_dict())
    assert other.step == 1
    other.eval()(*batch())
    assert other.step == 1


def test_a_term_of_ones_own() -> None:
    model, (x, y) = mlp(), batch()
    loss = Objective(fastxai.compile(model), [CrossEntropy(), 0.5 * MapNorm()])(x, y)
    leaf = x.detach().requires_grad_()
    scores = model(leaf)
    (g,) = torch.autograd.grad(scores.gather(1, y[:, None]).sum(), leaf, create_graph=True)
    want = F.cross_entropy(scores, y) + 0.5 * g.square().sum(1).mean()
    torch.testing.assert_close(loss, want, rtol=1e-12, atol=0)
    assert MapNorm().name == "map_norm" and (2 * MapNorm() * 3).weight == 6


def test_terms_hold_nothing_of_a_batch() -> None:
    """A term serves several objectives, and can be evaluated without any."""
    model, (x, y) = mlp(), batch()
    net, term = fastxai.compile(model), HessianNorm(2, seed=1)
    before = dict(vars(term))
    one, other = Objective(net, [term]), Objective(net, [0.5 * term, CrossEntropy()])
    values = one(x, y), other(x, y)
    assert vars(term) == before
    given = Batch(net, x, y, torch.arange(5), step=0)
    assert torch.equal(term(given), values[0])
    assert torch.equal(0.5 * values[0] + F.cross_entropy(given.scores, y), values[1])


def test_under_distributed_data_parallel() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = dist.TCPStore("127.0.0.1", port, 1, is_master=True)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model, (x, y) = mlp(), batch()
        objective = Objective(fastxai.compile(model), [CrossEntropy(), ZETA * HessianNorm()])
        want = torch.autograd.grad(objective.eval()(x, y), list(model.parameters()))
        wrapped = nn.parallel.DistributedDataParallel(objective)
        wrapped(x, y).backward()
        for p, wanted in zip(model.parameters(), want, strict=True):
            torch.testing.assert_close(p.grad, wanted)
    finally:
        dist.destroy_process_group()
    assert os.getpid()


def test_errors() -> None:
    net, (x, y) = fastxai.compile(mlp()), batch()
    for kind, message, make in (
        (TypeError, "net must come from fastxai.compile, got Sequential", lambda: Objective(mlp(), [CrossEntropy()])),
        (ValueError, "terms must hold one term at least", lambda: Objective(net, [])),
        (TypeError, "terms must hold training.Term objects, got 1.0", lambda: Objective(net, [1.0])),
        (ValueError, "terms must have different names", lambda: Objective(net, [CrossEntropy(), CrossEntropy()])),
        (TypeError, "factor must be a number, got a", lambda: "a" * CrossEntropy()),
        (ValueError, "factor must be finite", lambda: float("nan") * CrossEntropy()),
        (ValueError, "probes must be a positive int, got 0", lambda: HessianNorm(0)),
        (ValueError, "kind must be one of", lambda: HessianNorm(kind="uniform")),
        (ValueError, "reduction must be one of 'mean', 'sum', got 'max'", lambda: HessianNorm(reduction="max")),
        (ValueError, "of must be one of 'winner', 'label', 'loss', got 'score'", lambda: HessianNorm(of="score")),
        (TypeError, "direction must be callable", lambda: HessianNorm(direction=3)),
        (ValueError, "label_smoothing must lie in 0 .. 1, got 2", lambda: CrossEntropy(2)),
        (ValueError, r"x must have shape \[N > 0, ...\]", lambda: Objective(net, [CrossEntropy()])(x[:0], y[:0])),
        (ValueError, r"y must have shape \[5\], got \[3\]", lambda: Objective(net, [CrossEntropy()])(x, y[:3])),
        (TypeError, "y must hold integers", lambda: Objective(net, [CrossEntropy()])(x, y.double())),
        (ValueError, r"index must have shape \[5\]", lambda: Objective(net, [CrossEntropy()])(x, y, y[:2])),
    ):
        with pytest.raises(kind, match=message):
            make()
