"""Tapes: what the CPU replays is what ordinary calls do, bit for bit; what cannot be replayed goes on as before."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from attacks.nets import cnn, pairs
from attacks.test_recorded import ASCENTS, MAPS, SETTINGS, attack, moves, same
from engine.small import batch, small
from engine.test_capture import CALLS, inputs, smooth
from engine.test_weights import CHANGES
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fastxai
from fastxai.attacks import IFIA, Manipulation
from fastxai.attacks._recorded import graphs_for
from fastxai.engine import tape
from fastxai.engine.capture import Graphs
from fastxai.engine.recorder import Ran
from fastxai.explainers import Gradient
from fastxai.kernels import _memory, _native

__all__ = ["moves"]
DTYPES = [torch.float32, torch.float64]


@pytest.fixture(autouse=True)
def _short_attacks_too_and_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastxai.attacks._recorded.LEAST", 3)
    warnings.filterwarnings("error", message=".*is not captured")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("what", CALLS)
def test_a_net_gives_the_same_bits(what: str, dtype: torch.dtype) -> None:
    model = small(dtype)
    net, plain, call = smooth(model, capture=True), smooth(model), CALLS[what]
    for x in inputs(6):
        got, want = call(net, x.to(dtype)), call(plain, x.to(dtype))
        assert torch.equal(got, want) and got.stride() == want.stride() and not got.requires_grad
    assert len(net._core.graphs or ()) >= 1


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(list(CALLS)), st.sampled_from([1, 2]), st.sampled_from([None, *CHANGES])), max_size=8
    )
)
def test_any_history_gives_the_same_bits(history: list[tuple[str, int, str | None]]) -> None:
    model = small()
    net, plain = smooth(model, capture=True), smooth(model)
    for number, (what, n, change) in enumerate(history):
        if change is not None:
            with torch.enable_grad():
                CHANGES[change](model)
        for x in inputs(4, n):
            assert torch.equal(CALLS[what](net, x), CALLS[what](plain, x)), (number, what)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", MAPS)
def test_every_map_is_manipulated_alike(name: str, dtype: torch.dtype, moves: list[int]) -> None:
    model, pair = cnn().to(dtype), [t.to(dtype) for t in pairs()]
    want = attack(MAPS[name](fastxai.compile(model, capture=False))).perturb(*pair)
    assert moves == [3] * 9
    got = attack(MAPS[name](fastxai.compile(model, capture=True))).perturb(*pair)
    assert moves == [3] * 9 + [3] * 3
    assert same(got, want) and not torch.equal(got.images, pair[0])


def test_manipulation_is_recorded_unasked_and_nothing_else(moves: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    model, (x, target_map) = cnn(), pairs()
    want = attack(Gradient(fastxai.compile(model, capture=False))).perturb(x, target_map)
    assert moves == [3] * 9
    net = fastxai.compile(model)
    assert same(attack(Gradient(net)).perturb(x, target_map), want)
    assert moves == [3] * 9 + [3] * 3
    attack(Gradient(net), stop=0.99).perturb(x, target_map)
    assert moves == [3] * 9 + [3] * 3 + [3] * 9
    assert net._core.graphs is None and graphs_for(Gradient(net), x, 9) is None
    monkeypatch.setattr(tape, "_MOST", 1 << 10)
    assert same(attack(Gradient(net)).perturb(x, target_map), want), "what is refused is refused in silence"
    with pytest.raises(ValueError, match="capture must be True, False or None, got yes"):
        fastxai.compile(model, capture="yes")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_is_manipulated_alike(name: str) -> None:
    model, pair = cnn(), pairs()
    want = attack(Gradient(fastxai.compile(model, capture=False)), **SETTINGS[name]).perturb(*pair)
    assert same(attack(Gradient(fastxai.compile(model, capture=True)), **SETTINGS[name]).perturb(*pair), want)


@pytest.mark.parametrize("name", ASCENTS)
def test_every_ascent_is_recorded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are frozen in both: fewer of them might be summed in another order."""
    monkeypatch.setattr("fastxai.attacks._map_ascent._rows_alike", lambda explainer: False)
    model, (x, _) = cnn().float(), pairs()
    want = ASCENTS[name](fastxai.compile(model)).perturb(x.float())
    assert same(ASCENTS[name](fastxai.compile(model, capture=True)).perturb(x.float()), want)


def test_kernels_of_the_demo_network_are_replayed() -> None:
    """Winograd's, the thin ones, the dense ones, max-pools, and memory of the pool."""
    model, x = fastxai.models.demo(), torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    net, plain = fastxai.compile(model, capture=True), fastxai.compile(model, capture=False)
    made: dict[str, Tensor] = {}
    for which in (plain, net):
        explainer = fastxai.LRP(which, "zplus_zb", low=0.0, high=1.0)
        for name, e, beta in (("lrp", explainer, None), ("gradient", Gradient(which), (10.0, 100.0))):
            run = Manipulation(e, steps=6, beta=beta, bounds=(0.0, 1.0))
            images = run.perturb(x[:3], plain.gradient(x[3:])).images
            assert torch.equal(made.setdefault(name, images), images)
        run = IFIA(Gradient(which), eps=0.1, alpha=0.02, steps=6)
        images = run.perturb(x[:3]).images
        assert torch.equal(made.setdefault("ifia", images), images)


def test_the_weight_gradient_is_replayed() -> None:
    weight = torch.randn(32, 16, 3, 3)
    layer = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.Softplus(), nn.Flatten(), nn.Linear(32 * 64, 3))
    with torch.no_grad():
        layer[0].weight.copy_(weight)  # type: ignore[union-attr]
    net = fastxai.compile(layer)

    def slopes(x: Tensor) -> list[Tensor]:
        with torch.enable_grad():
            loss = Gradient(net).attribute(x, 1).square().sum()
            return list(torch.autograd.grad(loss, [layer[0].weight, layer[3].weight]))  # type: ignore[union-attr]

    graphs = Graphs()
    for x in torch.randn(5, 2, 16, 8, 8):
        got, want = graphs("slopes", slopes, (x,), reads=[*layer.parameters()]), slopes(x)
        assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))
    assert len(graphs) == 1


def recorded(function: Callable[[Tensor], Tensor], xs: Tensor) -> tuple[list[Tensor], Graphs]:
    graphs = Graphs()
    return [graphs("it", function, (x,)) for x in xs], graphs


def test_operations_of_every_kind_are_replayed() -> None:
    total, index = torch.zeros(3), torch.tensor([2, 0])

    def work(x: Tensor) -> Tensor:
        y = torch.empty_like(x).copy_(x).mul_(2)  # memory, and operations in place
        z = y.t().contiguous().view(-1)[:3]  # views
        total.add_(z)  # what was there before
        parts = torch.stack(x.unbind()).topk(2, dim=1)  # two results
        extra = torch.ops.aten._unsafe_view(y, (y.numel(),)).sum() + torch.zeros_like(x).sum() + x[index].sum()
        return z + parts.values.sum() + parts.indices.sum() + extra + torch.tensor(1.5) + total

    xs = torch.randn(6, 3, 4)
    got, graphs = recorded(work, xs)
    total.zero_()
    assert len(graphs) == 1 and all(torch.equal(g, work(x)) for g, x in zip(got, xs, strict=True))


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x * x.sum().item(),
        lambda x: x[x > 0].sum(),
        lambda x: x.nonzero().sum() + x,
        lambda x: x if x.sum() > 0 else -x,
        lambda x: x + torch.equal(x, x),
    ],
)
def test_what_depends_on_values_goes_on_as_before(work: Callable[[Tensor], Tensor]) -> None:
    xs = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match="it is not captured and runs as usual. Cause: it takes values from tensors"):
        got, graphs = recorded(work, xs)
    assert len(graphs) == 0 and all(torch.equal(g, work(x)) for g, x in zip(got, xs, strict=True))


def test_a_value_taken_at_the_recorded_call_alone_does_no_work_twice() -> None:
    calls, total = [], torch.zeros(())

    def work(x: Tensor) -> Tensor:
        calls.append(0)
        total.add_(x.sum())
        return x + (x.sum().item() if len(calls) == 3 else 0)

    xs = torch.randn(5, 4)
    with pytest.warns(UserWarning, match="takes values"):
        recorded(work, xs)
    assert len(calls) == 5 and torch.allclose(total, xs.sum())


@pytest.mark.parametrize(
    "work",
    [
        lambda x: (torch.tensor(0.0).add_(x.sum()), torch.tensor([1.0, 2.0]).mul_(x[:2]))[0] + x,
        lambda x: torch.ops.aten._native_batch_norm_legit(
            x[None, :, None].expand(2, -1, 3), None, None, x.clone(), x.clone(), True, 0.1, 1e-5
        )[0],
        lambda x: torch.nn.functional.batch_norm(
            x[None, :, None].expand(2, -1, 3), x.clone(), x.clone(), training=True
        ),
        lambda x: torch.linalg.cholesky(torch.diag(x.square() + 1)) + fastxai.ops.softplus(x.view(2, 2).t(), 2.0)[0, 0],
        lambda x: torch.nn.functional.linear(x, torch.ones(3, 4)),
        lambda x: (lambda y: y.view(-1) + y.t_().reshape(-1) + y[0, 1])(x.view(2, 2) * 2),
    ],
)
def test_constants_statistics_and_whole_operations_are_replayed(work: Callable[[Tensor], Tensor]) -> None:
    xs = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    got, graphs = recorded(work, xs)
    assert len(graphs) == 1 and all(torch.equal(g, work(x)) for g, x in zip(got, xs, strict=True))


@pytest.mark.parametrize(
    ("work", "reason"),
    [
        (lambda x: torch.empty(0).resize_(4).copy_(x), "changes the memory"),
        (lambda x: torch.empty(0).set_(x * 3) + 0, "changes the memory"),
        (lambda x: x.to_sparse().to_dense(), "it has sparse tensors|takes values"),
    ],
)
def test_what_moves_memory_about_goes_on_as_before(work: Callable[[Tensor], Tensor], reason: str) -> None:
    xs = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match=reason):
        got, graphs = recorded(work, xs)
    assert len(graphs) == 0 and all(torch.equal(g, work(x)) for g, x in zip(got, xs, strict=True))


def test_an_error_at_the_recorded_call_is_the_caller_s() -> None:
    calls, total = [], torch.zeros(())

    def work(x: Tensor) -> Tensor:
        calls.append(0)
        total.add_(1)
        if len(calls) == 3:
            raise RuntimeError("out of something")
        return x + 1

    graphs, x = Graphs(), torch.ones(2)
    for number in range(6):
        if number == 2:
            with pytest.raises(RuntimeError, match="out of something"):
                graphs("it", work, (x,))
        else:
            assert torch.equal(graphs("it", work, (x,)), x + 1)
    assert int(total) == 6 and len(graphs) == 1


def test_reads_of_inference_mode_and_autocast_are_seen() -> None:
    with torch.inference_mode():
        read = torch.ones(2, 2)
    weight = torch.ones(4, 4)

    def work(x: Tensor) -> Tensor:
        return x.view(2, 2) + read.t().contiguous() + torch.nn.functional.linear(x, weight).view(2, 2)

    graphs = Graphs()
    for number, x in enumerate(torch.randn(6, 4)):
        with torch.autocast("cpu", torch.bfloat16):
            torch.nn.functional.linear(x, weight)  # autocast remembers the weight's cast now
            assert torch.equal(graphs("it", work, (x,), reads=[read, weight]), work(x))
        with torch.inference_mode():
            read.fill_(number)
        weight.mul_(1.5)
    assert len(graphs) == 1


def test_what_was_there_before_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tape, "_MOST", 1 << 10)
    large = torch.ones(1 << 10)
    _, graphs = recorded(lambda x: large[:4] * x + large.view(-1, 4)[0], torch.randn(4, 4))
    assert len(graphs) == 1


def test_long_tapes_are_refused_and_hold_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tape, "_MOST", 1 << 10)
    xs = torch.randn(4, 1 << 10)
    with pytest.warns(UserWarning, match="take more than"):
        got, graphs = recorded(lambda x: x * 2 + 1, xs)
    assert len(graphs) == 0 and all(torch.equal(g, x * 2 + 1) for g, x in zip(got, xs, strict=True))


def test_a_tape_holds_the_pool_s_memory() -> None:
    like = torch.empty(0)

    def work(x: Tensor) -> Tensor:
        big = _memory.empty((1 << 17,), like)  # 512 KiB: the kernels' own memory, which torch does not see
        _native.launch("cpu", "activation_pull", x, 0, 0, 1.0, 0.0, 0, 4, 0, *[x.data_ptr()] * 3, big.data_ptr())
        return big[:4].clone()

    xs = torch.randn(6, 4)
    graphs = Graphs()
    for x in xs:
        got = graphs("it", work, (x,))
        noise = _memory.empty((1 << 17,), like).fill_(7)
        assert torch.equal(got, work(x)) and bool((noise == 7).all())


def test_inference_mode_at_any_call() -> None:
    net, plain = smooth(capture=True), smooth()
    for mode in (False, False, True, False, True):
        with torch.inference_mode(mode):
            assert torch.equal(net.gradient(batch(), 1), plain.gradient(batch(), 1))


def test_nobody_writes_inside_another_s_call_nor_after_an_error() -> None:
    inner, outer = Graphs(), Graphs()

    def work(x: Tensor) -> Tensor:
        assert not inner.serves(x) or _native.writer.get() is None
        return inner("inner", torch.exp, (x,))

    for x in torch.randn(6, 3):
        assert torch.equal(outer("outer", work, (x,)), x.exp())
    assert len(outer) == 1

    def broken(x: Tensor) -> Tensor:
        raise ValueError("no")

    for _ in range(3):
        with pytest.raises(ValueError, match="no"):
            outer("broken", broken, (torch.ones(1),))
    assert _native.writer.get() is None and isinstance(Ran("why", 1), RuntimeError)


def test_numbers_of_an_attack_in_memory() -> None:
    kernel = fastxai.kernels.activation
    beta = fastxai.kernels.formulas.dials([3.0], torch.device("cpu"))[0].clone()
    act, a = kernel.Activation("softplus", beta), torch.randn(2, 3)
    assert torch.equal(kernel.push(act, a)[0], kernel.push(kernel.Activation("softplus", 3.0), a)[0])
    beta.copy_(fastxai.kernels.formulas.dials([5.0], torch.device("cpu"))[0])
    assert torch.equal(kernel.push(act, a)[0], kernel.push(kernel.Activation("softplus", 5.0), a)[0])
