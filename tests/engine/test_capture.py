"""Captured functions equal ordinary ones: the logic by a stand-in on the CPU, the same on a GPU where there is one."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from engine.small import batch, small
from engine.tape import TapeRecorder, taped
from engine.test_weights import CHANGES
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fastxai
from fastxai.engine.capture import CudaRecorder, Graphs

CALLS: dict[str, Callable[[fastxai.Net, Tensor], Tensor]] = {
    "scores": lambda net, x: net(x),
    "gradient": lambda net, x: net.gradient(x, 1),
    "gradient of the best": lambda net, x: net.gradient(x),
    "H v": lambda net, x: net.hvp(x, x.flip(0), 1),
    "H v of three directions": lambda net, x: net.hvp(x, torch.stack([x, x.flip(0), x * x]), 2),
    "norm": lambda net, x: net.hessian_norm(x, 1, probes=2),
}


def inputs(count: int, n: int = 4) -> list[Tensor]:
    return list(batch(n * count).chunk(count))


def smooth(model: nn.Module | None = None, *, capture: bool = False) -> fastxai.Net:
    return fastxai.compile(small() if model is None else model, activation="softplus", beta=3.0, capture=capture)


def test_a_function_is_called_twice_then_recorded_then_replayed() -> None:
    recorder, seen = TapeRecorder(), []

    def double(x: Tensor, y: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        seen.append(x)
        return 2 * x, {"sum": x.sum()}

    graphs, kept = Graphs(recorder=recorder), []
    for x in inputs(6):
        got, more = graphs("twice", double, (x, None))
        assert torch.equal(got, 2 * x) and torch.equal(more["sum"], x.sum())
        kept.append((got, got.clone()))
    assert recorder.log == ["run", "run", "record"] and len(seen) == 3 and len(graphs) == 1
    assert all(torch.equal(mine, copy) for mine, copy in kept), "a result belongs to the caller"


def test_where_nobody_records_it_is_a_plain_call() -> None:
    graphs, x = Graphs(recorder=CudaRecorder()), torch.ones(2, requires_grad=True)
    for _ in range(4):
        assert graphs("itself", lambda x: x, (x,)) is x
    assert len(graphs) == 0 and not graphs.serves(x)


@pytest.mark.parametrize("what", CALLS)
def test_a_net_gives_the_same_bits(what: str) -> None:
    net, call = smooth(), CALLS[what]
    with fastxai.backend("reference"):
        want = [call(net, x) for x in inputs(5)]
    with taped(net) as recorder:
        got = [call(net, x) for x in inputs(5)]
    assert recorder.log.count("record") == (2 if what == "gradient of the best" else 1)
    for mine, theirs in zip(got, want, strict=True):
        assert torch.equal(mine, theirs) and mine.stride() == theirs.stride() and not mine.requires_grad


def test_inputs_may_have_a_graph_any_strides_and_inference_mode() -> None:
    net = smooth()
    x = torch.empty(4, 2, 6, 5, dtype=torch.float64, memory_format=torch.channels_last).copy_(batch())
    with fastxai.backend("reference"):
        want = net.hvp(x, x, 1)
    with taped(net):
        for _ in range(3):
            net.hvp(batch(), batch(), 1)
        assert torch.equal(net.hvp(x.clone().requires_grad_(), x[:1].expand_as(x), 1), net.hvp(x, x[[0] * 4], 1))
        with torch.inference_mode():
            assert torch.equal(net.hvp(x, x, 1), want)
        assert torch.equal(net.hvp(x, x, 1), want)


@pytest.mark.parametrize("change", CHANGES)
def test_changed_weights_are_seen(change: str) -> None:
    model = small()
    net, plain, x = smooth(model), smooth(model), batch()
    with taped(net) as recorder:
        for _ in range(4):
            net.gradient(x, 1)
        before = net.gradient(x, 1)
        with torch.enable_grad():
            CHANGES[change](model)
        got = [net.gradient(x, 1) for _ in range(4)]
        want = plain.gradient(x, 1)
        assert all(torch.equal(g, want) for g in got)
    # Derived weights, such as the replaced one, whose columns are put in order, are rebuilt where they lie.
    moved = change in ("load_state_dict-assign", "moved")
    assert recorder.log.count("record") == 1 + moved
    assert torch.equal(before, want) == (change == "moved")


def test_edits_through_data_are_seen_after_refresh() -> None:
    model = small()
    net, x = smooth(model), batch()
    with taped(net) as recorder:
        for _ in range(3):
            net.gradient(x, 1)
        model.conv.weight.data *= 2  # type: ignore[operator,union-attr]
        net.refresh()
        assert torch.equal(net.gradient(x, 1), smooth(model).gradient(x, 1))
    assert recorder.log.count("record") == 1, "derived weights are rebuilt where they lie"


def test_every_view_shape_and_dtype_has_a_graph_of_its_own() -> None:
    model = small()
    net = fastxai.compile(model)
    views = [net, net.with_activation("softplus", 2.0), net.with_activation("softplus", 3.0)]
    with taped(net) as recorder:
        for _ in range(5):
            for view in views:
                for n in (1, 3):
                    plain = fastxai.compile(model).with_activation(view.activation, view.beta)
                    assert torch.equal(view.gradient(batch(n), 1), plain.gradient(batch(n), 1))
        assert recorder.log.count("record") == 6
        assert [len(pool) for pool in recorder.pools] == [6], "they share one pool"


def test_at_most_so_many_are_kept() -> None:
    graphs = Graphs(2, recorder=(recorder := TapeRecorder()))
    for _ in range(4):
        for n in (1, 2):
            graphs("ones", torch.ones_like, (torch.zeros(n),))
    assert len(graphs) == 2 and recorder.log.count("record") == 2
    for _ in range(3):
        graphs("ones", torch.ones_like, (torch.zeros(3),))
    assert len(graphs) == 2 and recorder.log.count("record") == 3
    graphs("ones", torch.ones_like, (torch.zeros(2),))
    assert recorder.log.count("record") == 3, "the one that was used last is still there"
    graphs("ones", torch.ones_like, (torch.zeros(1),))
    assert recorder.log[-1] == "run" and len(graphs) == 1
    graphs.clear()
    assert len(graphs) == 0
    for bound in (0, True, 1.5):
        with pytest.raises(ValueError, match="bound must be a positive int"):
            Graphs(bound)  # type: ignore[arg-type]


@pytest.mark.parametrize("watches", [True, False])
def test_what_waits_for_the_device_goes_on_as_before_and_says_so_once(watches: bool) -> None:
    graphs = Graphs(recorder=(recorder := TapeRecorder(watches=watches)))

    def waits(x: Tensor) -> Tensor:
        return x * x.sum().item()

    with pytest.warns(UserWarning, match="norms is not captured.*Cause") as caught:
        for n in (2, 3):
            for _ in range(5):
                assert torch.equal(graphs("norms", waits, (torch.ones(n),)), n * torch.ones(n))
    assert len(caught) == 1 and len(graphs) == 0
    assert recorder.log.count("record") == (0 if watches else 2), "it is not tried again"


def test_errors_of_the_function_are_the_callers() -> None:
    graphs = Graphs(recorder=TapeRecorder())

    def fails(x: Tensor) -> Tensor:
        raise RuntimeError("of its own")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="of its own"):
            graphs("failure", fails, (torch.ones(2),))
    net = smooth()
    with taped(net), pytest.raises(ValueError, match="target must lie in 0"):
        net.gradient(batch(), 3)


def test_state_on_the_device_goes_on_from_call_to_call() -> None:
    """A recorded call happens once, like the others; reads that move are recorded anew."""
    graphs, state = Graphs(recorder=(recorder := TapeRecorder())), torch.zeros(2)

    def count(x: Tensor) -> Tensor:
        return state.add_(x).clone()

    for t in range(1, 6):
        assert graphs("count", count, (torch.ones(2),), reads=[state]).tolist() == [t, t]
    assert recorder.log.count("record") == 1
    state = torch.full((2,), 10.0)
    for t in range(11, 15):
        assert graphs("count", count, (torch.ones(2),), reads=[state]).tolist() == [t, t]
    assert recorder.log.count("record") == 2


def test_a_recorded_function_inside_another_is_a_part_of_it() -> None:
    inner, recorder = [], TapeRecorder()
    graphs = Graphs(recorder=recorder)
    more = graphs.another()

    def outer(x: Tensor) -> Tensor:
        return more("inner", lambda x: (inner.append(0), 2 * x)[1], (x,)) + 1

    for x in inputs(5):
        assert torch.equal(graphs("outer", outer, (x,)), 2 * x + 1)
    assert len(inner) == 3 and recorder.log == ["run", "run", "record"] and len(more) == 0


@pytest.mark.parametrize("calls", [1, 2, 4])
def test_results_do_not_alias_inputs_of_later_calls(calls: int) -> None:
    graphs, kept = Graphs(recorder=TapeRecorder()), []
    for x in inputs(calls):
        kept.append((graphs("itself", lambda x: x.view(-1), (x.clone(),)), x))
    assert all(torch.equal(y, x.view(-1)) for y, x in kept)


def test_empty_batches_are_not_recorded() -> None:
    net = smooth()
    with taped(net) as recorder:
        for _ in range(4):
            assert net.gradient(batch(0), 1).shape == (0, 2, 6, 5)
    assert recorder.log == []


def test_a_net_that_is_gone_leaves_nothing_behind() -> None:
    net = smooth()
    with taped(net) as recorder:
        for _ in range(4):
            net.gradient(batch(), 1)
    del net
    gc.collect()
    with pytest.raises(AssertionError, match="given back"):
        recorder.pools[0][0].replay()


@settings(max_examples=6, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(list(CALLS)), st.integers(1, 2), st.sampled_from([None, *CHANGES])), max_size=8)
)
def test_any_history_gives_the_same_bits(history: list[tuple[str, int, str | None]]) -> None:
    model = small()
    net, plain, held = smooth(model), smooth(model), []
    with taped(net, bound=3):
        for number, (what, n, change) in enumerate(history):
            if change is not None:
                # A weight that moves away and back is where it was to a graph; the stand-in knows storages.
                held += [x.untyped_storage() for x in (*model.parameters(), *model.buffers())]
                with torch.enable_grad():
                    CHANGES[change](model)
            for x in inputs(4, n):
                assert torch.equal(CALLS[what](net, x), CALLS[what](plain, x)), (number, what)


@contextmanager
def strict() -> Iterator[None]:
    """Make an error of everything that waits for the GPU."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def gpu() -> str:
    reason = fastxai.available()["triton"]
    if reason:
        pytest.skip(f"backend 'triton': {reason}")
    return "cuda"


def on(device: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, list[Tensor]]:
    return small(dtype).to(device), [x.to(device, dtype) for x in inputs(6)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("what", CALLS)
def test_gpu_gives_the_same_bits(gpu: str, what: str, dtype: torch.dtype) -> None:
    model, xs = on(gpu, dtype)
    net, plain = smooth(model, capture=True), smooth(model)
    want = [CALLS[what](plain, x) for x in xs]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*is not captured")
        got = [CALLS[what](net, x) for x in xs]
    assert len(net._core.graphs or ()) > 0
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(got, want, strict=True))


@pytest.mark.parametrize("change", CHANGES)
def test_gpu_sees_changed_weights(gpu: str, change: str) -> None:
    model, xs = on(gpu, torch.float64)
    if change in ("optimiser", "adam", "load_state_dict", "load_state_dict-assign", "statistics"):
        cpu = small()
        CHANGES[change](cpu)
        state = {name: t.to(gpu) for name, t in cpu.state_dict().items()}
        edit = lambda m: m.load_state_dict(state, assign=change.endswith("assign"))  # noqa: E731
    else:
        edit = CHANGES[change]
    net, plain = smooth(model, capture=True), smooth(model)
    for x in xs:
        net.hvp(x, x, 1)
    edit(model)
    assert all(torch.equal(net.hvp(x, x, 1), plain.hvp(x, x, 1)) for x in xs)


def test_gpu_replays_wait_for_nothing_and_may_change_streams(gpu: str) -> None:
    model, xs = on(gpu)
    net, plain = smooth(model, capture=True), smooth(model)
    target = torch.ones(4, dtype=torch.long, device=gpu)
    want = [plain.hvp(x, x, target) for x in xs]
    for x in xs[:3]:
        net.hvp(x, x, target)
    side, got = torch.cuda.Stream(), []
    with strict():
        for i, x in enumerate(xs):
            with torch.cuda.stream(side if i % 2 else torch.cuda.current_stream()):
                side.wait_stream(torch.cuda.default_stream())
                got.append(net.hvp(x, x, target))
            torch.cuda.default_stream().wait_stream(side)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(got, want, strict=True))


def test_gpu_refuses_what_waits(gpu: str) -> None:
    graphs, x = Graphs(), torch.ones(3, device=gpu)
    with pytest.warns(UserWarning, match="waits for the device"):
        for _ in range(4):
            assert torch.equal(graphs("norm", lambda x: x * x.sum().item(), (x,)), 3 * x)
    assert len(graphs) == 0 and torch.cuda.get_sync_debug_mode() == 0


def test_gpu_survives_a_capture_that_fails(gpu: str) -> None:
    graphs, x, calls = Graphs(), torch.ones(3, device=gpu), [0]

    def late(x: Tensor) -> Tensor:
        calls[0] += 1
        return x * x.sum().item() if calls[0] > 2 else 3 * x

    stream = torch.cuda.current_stream()
    with pytest.warns(UserWarning, match="is not captured"):
        for _ in range(5):
            assert torch.equal(graphs("late", late, (x,)), 3 * x)
    assert torch.cuda.current_stream() == stream
    other = [graphs("sum", lambda x: x + 1, (x,)) for _ in range(4)]
    assert len(graphs) == 1 and all(torch.equal(y, x + 1) for y in other)


def test_gpu_inside_a_capture_of_the_users(gpu: str) -> None:
    model, (x, *_) = on(gpu)
    net = smooth(model, capture=True)
    want, graph = net.gradient(x, torch.ones(4, dtype=torch.long, device=gpu)), torch.cuda.CUDAGraph()
    target = torch.ones(4, dtype=torch.long, device=gpu)
    net.gradient(x, target)
    with torch.cuda.graph(graph):
        got = net.gradient(x, target)
    graph.replay()
    assert torch.equal(got, want)


def test_gpu_memory_is_bounded(gpu: str) -> None:
    model = small(torch.float32).to(gpu)
    net = smooth(model, capture=True)
    for n in range(1, 13):
        for _ in range(3):
            net.gradient(torch.randn(n, 2, 6, 5, device=gpu), 1)
    assert len(net._core.graphs or ()) == 8
