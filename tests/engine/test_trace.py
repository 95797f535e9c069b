"""The recorder: in-place operations, views, what it must refuse, and that it leaves nothing behind."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from engine.nets import directions, error, hvp, oracle
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

import fastxai
from fastxai.engine.trace import Trace, Unsupported, trace

Body = Callable[["Model", Tensor], Any]


class Model(nn.Module):
    """A body around a convolution and a dense head."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(2, 2, 3, padding=1), nn.Linear(2 * 4 * 5, 3)
        self.register_buffer("shift", torch.randn(2, 1, 1))
        self.scale = torch.randn(5)  # a constant that no table holds
        self.body = body

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x)

    def scores(self, h: Tensor) -> Tensor:
        return self.head(torch.tanh(h).flatten(1))


def sample() -> Tensor:
    return torch.randn(3, 2, 4, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def recorded(model: nn.Module) -> Trace:
    return trace(model, (2, 4, 5), torch.float64, lambda x: x)


def compare(model: nn.Module, *, engine: bool) -> None:
    """Values and derivatives are eager's; the input is left as it was."""
    x, v = sample(), directions(sample(), 2)
    before = x.clone()
    net = fastxai.compile(model, activation="softplus", beta=2.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if not engine else "error")
        assert net.report(x).engine == engine, str(net.report(x))
    f = oracle(model, 2.0)
    g, hv = hvp(lambda x: f(x.clone()), x, v, 1)
    assert error(net(x), f(x.clone())) < 1e-12
    assert error(net.gradient(x, 1), g) < 1e-12
    assert error(net.hvp(x, v, 1), hv, 2) < 1e-11
    assert torch.equal(x, before)


def relu_read_twice(m: Model, x: Tensor) -> Tensor:
    a = m.conv(x)
    b = F.relu_(a)
    return m.scores(a + 2 * b)


def module_read_twice(m: Model, x: Tensor) -> Tensor:
    a = m.conv(x)
    nn.ReLU(inplace=True)(a)
    return m.scores(a)


def accumulate(m: Model, x: Tensor) -> Tensor:
    total = m.conv(x)
    alias = total
    total += x
    total -= 0.5
    total *= 2
    total /= 3
    alias.mul_(m.shift).add_(x, alpha=0.3)
    return m.scores(total * alias)


def write_into_the_input(m: Model, x: Tensor) -> Tensor:
    x.mul_(2).add_(1)
    x.tanh_()
    return m.scores(m.conv(x) + x)


def clone_first(m: Model, x: Tensor) -> Tensor:
    y = x.clone()
    y.sigmoid_()
    return m.scores(m.conv(x) * y)


def view_after_the_write(m: Model, x: Tensor) -> Tensor:
    h = m.conv(x)
    h.relu_()
    return m.head(h.view(len(h), -1).sigmoid())


def conditions_on_shapes(m: Model, x: Tensor) -> Tensor:
    h = m.conv(x) if x.shape[1] == 2 and x.dim() == 4 else x
    for _ in range(x.size(-1) - 3):
        h = torch.sigmoid(h)
    return m.scores(h)


def loose_constants(m: Model, x: Tensor) -> Tensor:
    where = torch.linspace(-1, 1, x.shape[-1], dtype=x.dtype) + torch.arange(5)
    return m.scores(m.conv(x) * m.scale.to(x.dtype) + where * m.shift)


def weights_of_weights(m: Model, x: Tensor) -> Tensor:
    w = m.conv.weight
    w = (w - w.mean((1, 2, 3), keepdim=True)) / w.std((1, 2, 3), keepdim=True)
    return m.scores(F.conv2d(x, w, m.conv.bias * 2, padding=1))


SUPPORTED = (
    *(relu_read_twice, module_read_twice, accumulate, write_into_the_input, clone_first, view_after_the_write),
    *(conditions_on_shapes, loose_constants, weights_of_weights),
)


@pytest.mark.parametrize("body", SUPPORTED, ids=lambda body: body.__name__)
def test_is_as_eager(body: Body) -> None:
    compare(Model(body).double().eval(), engine=True)


def test_an_in_place_activation_changes_what_later_readers_see() -> None:
    """torch.fx's interpreter reads the old value here."""
    model = nn.Module()
    model.forward = lambda x: (lambda a: (a.relu_(), a)[1].flatten(1))(x * 1)  # type: ignore[method-assign]
    x = torch.tensor([[[-1.0, 2.0]]])
    assert torch.equal(fastxai.compile(model)(x), torch.tensor([[0.0, 2.0]]))
    assert torch.equal(fastxai.compile(model).gradient(x, 0), torch.zeros(1, 1, 2))


def assign_a_slice(m: Model, x: Tensor) -> Tensor:
    h = m.conv(x)
    h[:, 0] = 0
    return m.scores(h)


def edit_a_view(m: Model, x: Tensor) -> Tensor:
    h = m.conv(x)
    h[:, :1].mul_(2)
    return m.scores(h)


def edit_under_a_view(m: Model, x: Tensor) -> Tensor:
    h = m.conv(x)
    view = h.flatten(1)
    h.sigmoid_()
    return m.head(view.tanh())


def halves(m: Model, x: Tensor) -> Tensor:
    a, b = m.conv(x).chunk(2, 1)
    a += b
    return m.scores(torch.cat([a, b], 1))


def data_dependent(m: Model, x: Tensor) -> Tensor:
    return m.scores(m.conv(x) if float(x.detach().sum()) > -1e9 else x)


def centre_the_batch(m: Model, x: Tensor) -> Tensor:
    return m.scores(m.conv(x - x.mean(0, keepdim=True)))


def softmax_over_the_batch(m: Model, x: Tensor) -> Tensor:
    return m.scores(m.conv(x).softmax(0))


def reverse_the_batch(m: Model, x: Tensor) -> Tensor:
    return m.scores(m.conv(x) * x.flip(0))


def shift_the_batch(m: Model, x: Tensor) -> Tensor:
    return m.scores(m.conv(x) + x.roll(1, 0))


def join_the_batch(m: Model, x: Tensor) -> Tensor:
    return m.scores(torch.cat([m.conv(x), x], 0).tanh().view(2, len(x), *x.shape[1:]).permute(1, 2, 0, 3, 4)[:, :, 0])


def first_sample(m: Model, x: Tensor) -> Tensor:
    return m.scores(m.conv(x) * x[:1])


def transposed_batch(m: Model, x: Tensor) -> Tensor:
    return m.scores(m.conv(x.transpose(0, 1).sigmoid().transpose(0, 1)))


def statistics_of_the_batch(m: Model, x: Tensor) -> Tensor:
    return m.scores(F.batch_norm(m.conv(x), None, None, training=True))


def a_bias_for_each_sample(m: Model, x: Tensor) -> Tensor:
    return m.scores(m.conv(x) + x.new_zeros(len(x), 1, 1, 1))


def another_dtype(m: Model, x: Tensor) -> Tensor:
    return m.scores(m.conv(x).float().double())


def stop_gradient(m: Model, x: Tensor) -> Tensor:
    return m.scores(m.conv(x) * x.detach())


REFUSED: dict[Body, str] = {
    assign_a_slice: "modified|modifies|writes",
    edit_a_view: "view of a tensor that was modified in place",
    edit_under_a_view: "view of a tensor that was modified in place",
    data_dependent: "shape-only",
    centre_the_batch: "mixes samples",
    softmax_over_the_batch: "batch",
    reverse_the_batch: "reverses the batch",
    shift_the_batch: "roll",
    join_the_batch: "mixes samples|along the batch",
    first_sample: "mixes samples|samples of the batch",
    transposed_batch: "mixes samples",
    statistics_of_the_batch: "statistics of the batch",
    a_bias_for_each_sample: "batch's size",
    stop_gradient: "detach",
}


@pytest.mark.parametrize("body", REFUSED, ids=lambda body: body.__name__)
def test_is_refused_with_a_reason_and_right_all_the_same(body: Body) -> None:
    model = Model(body).double().eval()
    compare(model, engine=False)
    with pytest.warns(UserWarning, match=REFUSED[body]):
        fastxai.compile(model).report(sample())


def test_an_edited_chunk_is_refused() -> None:
    with pytest.raises(Unsupported, match=r"add_ .* modifies an argument that it does not return"):
        recorded(Model(halves).double())


def test_another_dtype_inside_is_refused() -> None:
    model = Model(another_dtype).double().eval()
    with pytest.warns(UserWarning, match=r"torch.float32, the input is torch.float64"):
        assert not fastxai.compile(model).report(sample()).engine


@pytest.mark.parametrize("draw", [lambda x: torch.randn(5, dtype=x.dtype), torch.rand_like, torch.bernoulli], ids=str)
def test_random_numbers_are_refused(draw: Callable[[Tensor], Tensor]) -> None:
    model = Model(lambda m, x: m.scores(m.conv(x) + draw(x.sigmoid()))).double().eval()
    with pytest.warns(UserWarning, match="rand|bernoulli"):
        assert not fastxai.compile(model).report(sample()).engine


@pytest.mark.parametrize(
    "body",
    [
        lambda m, x: (m.scores(x), x),
        lambda m, x: {"scores": m.scores(x)},
        lambda m, x: m.conv(x),
        lambda m, x: m.scores(x).sum(),
        lambda m, x: m.scores(x)[:, 0],
        lambda m, x: m.head.bias,
    ],
    ids=["tuple", "dict", "image", "sum", "one-score", "constant"],
)
def test_anything_but_scores_is_an_error(body: Body) -> None:
    model = Model(body).double().eval()
    with pytest.raises(Unsupported, match=r"must return .*scores .*\[N, K\]"):
        recorded(model)
    for fallback in (False, True):
        with warnings.catch_warnings(), pytest.raises((TypeError, ValueError), match=r"model .*scores \[N, K\]"):
            warnings.simplefilter("ignore")
            fastxai.compile(model, fallback=fallback).gradient(sample(), 0)


def hooks(model: nn.Module) -> list[int]:
    return [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()]


class Unhookable(nn.Identity):
    def register_forward_hook(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no hooks here")


def test_nothing_is_left_behind() -> None:
    def explode(m: Model, x: Tensor) -> Tensor:
        m.conv(x)
        raise KeyError("inside forward")

    bad = Model(relu_read_twice)
    bad.last = Unhookable()
    for model, good in (
        (Model(relu_read_twice), True),
        (Model(explode), False),
        (Model(edit_a_view), False),
        (bad, False),
    ):
        model = model.double().train()
        model.conv.register_forward_hook(lambda *_: None)
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        before = hooks(model), {name: t.clone() for name, t in tensors.items()}
        if good:
            recorded(model)
        else:
            with pytest.raises(Unsupported):
                recorded(model)
        assert hooks(model) == before[0]
        assert _get_current_function_mode_stack() == []
        assert all(m.training for m in model.modules())
        after = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        assert all(after[name] is tensors[name] for name in tensors)
        assert all(torch.equal(after[name], before[1][name]) for name in tensors)
        assert torch.is_grad_enabled()


def test_the_user_s_hooks_are_part_of_the_model() -> None:
    model = Model(relu_read_twice).double().eval()
    model.conv.register_forward_hook(lambda _, args, output: torch.sigmoid(output) * args[0])
    model.conv.register_forward_pre_hook(lambda _, args: (args[0] * 2,))
    compare(model, engine=True)


def test_says_where_it_failed() -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 1), nn.Sequential(nn.Identity(), Model(edit_a_view)))
    with pytest.raises(Unsupported, match=r"'1\.1"):
        recorded(model.double())


def test_calls_carry_the_path_of_their_module() -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 1), nn.Sequential(nn.ReLU(), nn.Flatten()), nn.Linear(40, 3)).double()
    assert [call.path for call in recorded(model).calls] == ["0", "1.0", "1.1", "2"]
