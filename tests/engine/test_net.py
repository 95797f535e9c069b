"""The public interface: targets, views, errors, layouts, chunks, threads, train mode, reports."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from engine.nets import directions, error, gradient, oracle, randomise
from engine.small import SHAPE, agrees, batch, small, smooth
from torch import Tensor, nn

import fastxai


class TestTarget:
    def test_forms(self) -> None:
        model, x = small(), batch()
        net = fastxai.compile(model)
        classes = torch.tensor([0, 1, 2, 1])
        ones = torch.ones(4).long()
        for target, same in ((2, 2 * ones), (torch.tensor(1), ones), (classes.int(), classes)):
            assert torch.equal(net.gradient(x, target), net.gradient(x, same))
        assert error(net.gradient(x, classes), gradient(model, x, classes)) < 1e-12
        value, _ = net.value_and_gradient(x, classes)
        assert torch.allclose(value, model(x).gather(1, classes[:, None])[:, 0], rtol=1e-12, atol=0)

    def test_none_is_the_predicted_class(self) -> None:
        model, x = small(), batch(16)
        predicted = model(x).argmax(1)
        assert len(predicted.unique()) > 1
        net = fastxai.compile(model)
        v = directions(x, 1)[0]
        curved = fastxai.compile(model, surrogate="curvature", beta=2.0)
        assert torch.equal(net.gradient(x), net.gradient(x, predicted))
        assert torch.equal(curved.hvp(x, v), curved.hvp(x, v, predicted))
        assert torch.equal(net.value_and_gradient(x)[0], net.value_and_gradient(x, predicted)[0])
        assert torch.equal(net.differentiable_gradient(x)[0], net.gradient(x, predicted))

    @pytest.mark.parametrize("compiled", [True, False])
    def test_none_on_a_smoothed_view_means_the_model_as_given(self, compiled: bool) -> None:
        model, x = small(), batch(64)
        view = smooth(model, 0.05) if compiled else fastxai.compile(model).with_activation("softplus", beta=0.05)
        given, smoothed = model(x).argmax(1), view(x).argmax(1)
        assert not torch.equal(given, smoothed), "choose a smaller beta: the test needs classes that differ"
        assert torch.equal(view.gradient(x), view.gradient(x, given))
        assert torch.equal(view.hvp(x, x), view.hvp(x, x, given))
        value, _ = view.value_and_gradient(x)
        assert torch.equal(value, view(x).gather(1, given[:, None])[:, 0])
        assert torch.equal(view.differentiable_gradient(x.requires_grad_())[0], view.gradient(x, given))

    def test_the_model_as_given_is_asked_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        net, x = fastxai.compile(small()), batch()
        view, asked, call = net.with_activation("softplus", 1.0), [], type(net).__call__
        monkeypatch.setattr(type(net), "__call__", lambda self, x: asked.append(self) or call(self, x))
        view.value_and_gradient(x)
        assert asked == [net]


class TestViews:
    def test_views_do_not_disturb_each_other(self) -> None:
        model, x = small(), batch()
        net = fastxai.compile(model)
        soft, sharp = net.with_activation("softplus", beta=1.0), net.with_activation("softplus", beta=20.0)
        bent = fastxai.compile(model, surrogate="curvature", beta=2.0)
        for _ in range(2):
            assert error(soft.gradient(x, 0), gradient(oracle(model, 1.0), x, 0)) < 1e-12
            assert error(sharp.gradient(x, 0), gradient(oracle(model, 20.0), x, 0)) < 1e-12
            assert error(net.gradient(x, 0), gradient(model, x, 0)) < 1e-12
            assert error(bent.gradient(x, 0), gradient(model, x, 0)) < 1e-12
        back = soft.with_activation(None)
        assert torch.equal(back.gradient(x), net.gradient(x))
        assert back.beta is None and soft.beta == 1.0 and soft.base is net and soft.model is model

    def test_with_surrogate(self) -> None:
        model, x = small(), batch()
        net = fastxai.compile(model)
        v, bent = directions(x, 1)[0], fastxai.compile(model, surrogate="curvature", beta=2.0)
        for start in (net, net.with_activation("softplus", 1.0)):
            view = start.with_surrogate("curvature", 2.0)
            assert (view.surrogate, view.beta, view.activation) == ("curvature", 2.0, None) and view.base is net
            assert torch.equal(view(x), net(x)) and torch.equal(view.gradient(x), net.gradient(x))
            assert torch.equal(view.hvp(x, v), bent.hvp(x, v)) and view.hvp(x, v).abs().max() > 0
        assert net.with_surrogate("none").hvp(x, v).abs().max() == 0
        assert net.with_surrogate(None).surrogate is None
        rejects(ValueError, "surrogate | curvature | none | 'wave'", lambda: net.with_surrogate("wave", 1.0))
        rejects(ValueError, "beta | be given | None", lambda: net.with_surrogate("curvature"))
        rejects(ValueError, "beta | positive | 0", lambda: net.with_surrogate("curvature", 0.0))

    def test_a_surrogate_runs_no_second_pass_for_its_class(self, monkeypatch: pytest.MonkeyPatch) -> None:
        net, x = fastxai.compile(small()), batch()
        view = net.with_surrogate("curvature", 2.0)
        monkeypatch.setattr(type(net), "__call__", lambda *_: pytest.fail("the scores of the pass say the class"))
        view.hvp(x, x)

    def test_none_surrogate_is_flat_without_a_warning(self) -> None:
        net = fastxai.compile(small(), surrogate="none")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert net.hvp(batch(), batch(), 0).abs().max() == 0

    def test_hvp_of_a_piecewise_linear_net_warns_once(self) -> None:
        net = fastxai.compile(small())
        with pytest.warns(UserWarning, match="piecewise linear.*activation='softplus'.*surrogate='curvature'"):
            assert net.hvp(batch(), batch(), 0).abs().max() == 0
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            net.hvp(batch(), batch(), 0)

    @pytest.mark.parametrize("layer", [nn.Softmax(1), nn.Tanh()], ids=repr)
    def test_a_net_with_curvature_of_its_own_does_not_warn(self, layer: nn.Module) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert fastxai.compile(nn.Sequential(small(), layer)).hvp(batch(), batch(), 0).abs().max() > 0


def rejects(kind: type[Exception], words: str, call: Callable[[], Any]) -> None:
    """The message names the argument, the contract and the value, which ``words`` lists in their order."""
    with pytest.raises(kind, match=".*".join(words.split(" | "))):
        call()


class TestErrors:
    def test_compile(self) -> None:
        model = small()
        compile_ = fastxai.compile
        rejects(TypeError, "model | torch.nn.Module | function", lambda: compile_(lambda x: x))  # type: ignore[arg-type]
        rejects(ValueError, "activation | softplus | 'gelu'", lambda: compile_(model, activation="gelu", beta=1.0))
        rejects(
            ValueError, "surrogate | curvature | none | 'wave'", lambda: compile_(model, surrogate="wave", beta=1.0)
        )
        rejects(
            ValueError,
            "surrogate | None | activation | curvature",
            lambda: compile_(model, activation="softplus", beta=1.0, surrogate="curvature"),
        )
        rejects(ValueError, "beta | be given | None", lambda: compile_(model, activation="softplus"))
        rejects(ValueError, "beta | activation='softplus' | 2.0", lambda: compile_(model, beta=2.0))
        rejects(ValueError, "beta | activation='softplus' | 2.0", lambda: compile_(model, surrogate="none", beta=2.0))
        rejects(ValueError, "std | positive | 0", lambda: compile_(model, std=[1.0, 0.0]))
        rejects(ValueError, "std | finite and positive | inf", lambda: compile_(model, std=[1.0, float("inf")]))
        rejects(ValueError, "mean | finite | nan", lambda: compile_(model, mean=[0.0, float("nan")]))
        rejects(ValueError, "mean | finite | 'dark'", lambda: compile_(model, mean="dark"))  # type: ignore[arg-type]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            rejects(
                ValueError, r"std | 2 channels | \[1.0, 2.0, 3.0\]", lambda: compile_(model, std=[1, 2, 3])(batch())
            )

    @pytest.mark.parametrize("beta", [0.0, -1.0, float("nan"), float("inf"), "3"])
    def test_beta(self, beta: Any) -> None:
        rejects((ValueError, TypeError), f"beta | positive | {beta}", lambda: smooth(small(), beta))  # type: ignore[arg-type]
        rejects(
            (ValueError, TypeError),  # type: ignore[arg-type]
            f"beta | positive | {beta}",
            lambda: fastxai.compile(small()).with_activation("softplus", beta=beta),
        )

    @pytest.mark.parametrize("method", ["__call__", "gradient", "value_and_gradient", "differentiable_gradient", "hvp"])
    def test_input(self, method: str) -> None:
        net, x = fastxai.compile(small(), surrogate="curvature", beta=1.0), batch()

        def call(x: Any) -> Any:
            return getattr(net, method)(*((x, x) if method == "hvp" else (x,)))

        rejects(TypeError, "x | torch.Tensor | list", lambda: call(x.tolist()))
        rejects(TypeError, "x | floating point | torch.int64", lambda: call(x.long()))
        rejects(ValueError, "x | float64 | float32", lambda: call(x.float()))
        rejects(ValueError, r"x | \[N, ...\] | \[6\]", lambda: call(x[0, 0, :, 0]))
        rejects(ValueError, "x | device cpu | meta", lambda: call(x.to("meta")))

    @pytest.mark.parametrize("fallback", [False, True])
    def test_target(self, fallback: bool) -> None:
        net, x = fastxai.compile(small(), fallback=fallback), batch()
        rejects(ValueError, r"target | 0 .. 2 | 3 .. 3", lambda: net.gradient(x, 3))
        rejects(ValueError, r"target | 0 .. 2 | -1 .. 2", lambda: net.gradient(x, torch.tensor([0, -1, 2, 1])))
        rejects(ValueError, r"target | \[4\] | \[3\]", lambda: net.gradient(x, torch.tensor([0, 1, 2])))
        rejects(ValueError, r"target | \[4\] | \[4, 1\]", lambda: net.gradient(x, torch.zeros(4, 1).long()))
        rejects(TypeError, "target | integers | float32", lambda: net.gradient(x, torch.zeros(4)))
        rejects(TypeError, "target | int | 1.5", lambda: net.gradient(x, 1.5))  # type: ignore[arg-type]
        rejects(TypeError, "target | int", lambda: net.gradient(x, [0, 1, 2, 0]))  # type: ignore[arg-type]

    def test_direction(self) -> None:
        net, x = smooth(small()), batch()
        rejects(TypeError, "v | torch.Tensor | NoneType", lambda: net.hvp(x, None))  # type: ignore[arg-type]
        rejects(ValueError, "v | float64 | float32", lambda: net.hvp(x, x.float()))
        rejects(ValueError, r"v | \[4, 2, 6, 5\] | \[3, 2, 6, 5\]", lambda: net.hvp(x, x[:3]))
        rejects(ValueError, r"v | \[S, N, ...\] | \[2, 3, 2, 6, 5\]", lambda: net.hvp(x, torch.stack([x[:3]] * 2)))

    def test_report_without_an_input(self) -> None:
        rejects(ValueError, "x | be given", lambda: fastxai.compile(small()).report())


class TestShapesAndLayouts:
    @pytest.mark.parametrize("fallback", [False, True])
    def test_empty_batch(self, fallback: bool) -> None:
        net = fastxai.compile(small(), activation="softplus", beta=2.0, fallback=fallback)
        x = batch(0)
        assert net(x).shape == (0, 3)
        for target in (None, 1, torch.zeros(0).long()):
            value, g = net.value_and_gradient(x, target)
            assert value.shape == (0,) and g.shape == x.shape
            assert net.hvp(x, x, target).shape == x.shape
            assert net.hvp(x, x.expand(3, *x.shape), target).shape == (3, 0, *SHAPE)
        x.requires_grad_()
        heat, scores = net.differentiable_gradient(x, 0)
        (heat.sum() + scores.sum()).backward()
        assert x.grad is not None and x.grad.shape == x.shape

    @pytest.mark.parametrize("fallback", [False, True])
    def test_no_directions(self, fallback: bool) -> None:
        net = fastxai.compile(small(), activation="softplus", beta=2.0, fallback=fallback)
        assert net.hvp(batch(), torch.zeros(0, 4, *SHAPE, dtype=torch.float64), 1).shape == (0, 4, *SHAPE)

    def test_one_sample_is_the_batch_row(self) -> None:
        net, x = smooth(small()), batch()
        g, hv = net.gradient(x, 1), net.hvp(x, x.flip(0), 1)
        for i in range(len(x)):
            one = slice(i, i + 1)
            assert error(net.gradient(x[one], 1), g[one]) < 1e-13
            assert error(net.hvp(x[one], x.flip(0)[one], 1), hv[one]) < 1e-13

    @pytest.mark.parametrize(
        "layout",
        [
            lambda x: x.contiguous(memory_format=torch.channels_last),
            lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
            lambda x: torch.stack([x, x], -1)[..., 0],
            lambda x: x.flip(0).flip(0).repeat_interleave(2, 0)[::2],
            lambda x: x[:1].expand(4, -1, -1, -1),
        ],
        ids=["channels-last", "transposed", "strided", "every-second-row", "expanded"],
    )
    def test_layouts(self, layout: Callable[[Tensor], Tensor]) -> None:
        net, x = smooth(small()), layout(batch())
        dense, v = x.clone(memory_format=torch.contiguous_format), batch().flip(0)
        before = x.clone()
        assert torch.equal(net(x), net(dense))
        assert torch.equal(net.gradient(x, 1), net.gradient(dense, 1))
        assert torch.equal(net.hvp(x, v, 1), net.hvp(dense, v, 1))
        assert torch.equal(net.hvp(dense, layout(v), 1), net.hvp(dense, layout(v).contiguous(), 1))
        heat = net.differentiable_gradient(x.detach().requires_grad_(), 1)[0]
        assert torch.equal(heat, net.gradient(dense, 1))
        assert torch.equal(x, before), "the input is not written to"

    def test_numbers_carry_no_graph_and_explanations_do(self) -> None:
        net, x = smooth(small()), batch().requires_grad_()
        for got in (net(x), net.gradient(x, 1), *net.value_and_gradient(x, 1), net.hvp(x, x, 1)):
            assert not got.requires_grad
        heat, scores = net.differentiable_gradient(x, 1)
        assert heat.requires_grad and scores.requires_grad
        with torch.no_grad():
            assert not net.differentiable_gradient(x, 1)[0].requires_grad

    def test_another_shape_and_dtype_compile_anew(self) -> None:
        model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Softplus(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
        net = fastxai.compile(randomise(model).double())
        for size in (5, 8):
            x = torch.rand(2, 2, size, size, dtype=torch.float64)
            assert error(net.gradient(x, 1), gradient(oracle(model), x, 1)) < 1e-12

    @pytest.mark.parametrize("fallback", [False, True])
    def test_inference_mode(self, fallback: bool) -> None:
        model, x = small(), batch()
        net = fastxai.compile(model, activation="softplus", beta=3.0, fallback=fallback)
        with torch.inference_mode():
            inside = net.gradient(x, 1), net.hvp(x, x, 1), net.gradient(x + 0, 1)
            assert fallback or net.report(x).engine
        assert torch.equal(inside[0], inside[2])
        assert error(inside[0], gradient(oracle(model, 3.0), x, 1)) < 1e-12
        with torch.no_grad():
            model.conv.weight.mul_(1.5)
        assert agrees(net, model, x)
        assert error(inside[1], net.hvp(x, x, 1)) > 1e-3

    def test_threads_share_a_net(self) -> None:
        model, x = small(), batch(8)
        net = smooth(model)
        want, failures = net.hvp(x, x, 1), []

        def work() -> None:
            for _ in range(20):
                if not torch.equal(net.hvp(x, x, 1), want) or not torch.equal(net.gradient(x, 1), want_gradient):
                    failures.append("another result")

        want_gradient = net.gradient(x, 1)
        workers = [threading.Thread(target=work) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert failures == []

    def test_threads_compile_new_shapes_of_one_net(self) -> None:
        layers = (nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        model = randomise(nn.Sequential(*layers, nn.Linear(4, 3))).double()
        net, known, said = fastxai.compile(model), torch.rand(2, 2, 9, 9, dtype=torch.float64), []
        want = net.gradient(known, 1)

        def work(height: int) -> None:
            for width in range(5, 9):
                x = torch.rand(2, 2, height, width, dtype=torch.float64)
                ok = net.report(x).engine and error(net.gradient(x, 1), gradient(model, x, 1)) < 1e-12
                said.append(ok and torch.equal(net.gradient(known, 1), want))

        workers = [threading.Thread(target=work, args=(height,)) for height in range(5, 9)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert said == [True] * 16

    def test_results_do_not_depend_on_the_batch_around_a_sample(self) -> None:
        """The batch is large enough to run in many chunks, the single samples are one each."""
        torch.manual_seed(0)
        layers = (nn.Conv2d(2, 48, 3, padding=1), nn.BatchNorm2d(48), nn.ReLU(), nn.MaxPool2d(2))
        model = randomise(nn.Sequential(*layers, nn.Conv2d(48, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 18**2, 3)))
        net = smooth(model.double())
        x = torch.randn(9, 2, 40, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        x.requires_grad_()
        v = directions(x, 3)
        heat, scores = net.differentiable_gradient(x, 1)
        whole = torch.autograd.grad((heat.square().sum() + scores.sin().sum()), [x, *model.parameters()])
        g, hv = net.gradient(x, 1), net.hvp(x, v, 1)
        parts = []
        for i in range(9):
            one = x[i : i + 1].detach().requires_grad_()
            heat, scores = net.differentiable_gradient(one, 1)
            parts.append(torch.autograd.grad(heat.square().sum() + scores.sin().sum(), [one, *model.parameters()]))
            assert error(net.gradient(one, 1), g[i : i + 1]) < 1e-12
            assert error(net.hvp(one, v[:, i : i + 1], 1), hv[:, i : i + 1], 2) < 1e-12
        assert error(torch.cat([p[0] for p in parts]), whole[0]) < 1e-12
        for j in range(1, len(whole)):
            assert error(sum(p[j] for p in parts), whole[j], 0) < 1e-12  # type: ignore[arg-type]
        assert torch.equal(net.hvp(x, v, 1), hv), "the same input gives the same bits"


class TestTrainingMode:
    def test_a_model_in_train_mode_is_evaluated_in_eval_mode(self) -> None:
        model, x = nn.Sequential(small(), nn.Dropout(0.9)), batch()
        model.eval()
        want = model(x)
        model.train()
        model[0].pool.eval()
        flags = [m.training for m in model.modules()]
        for net in (fastxai.compile(model), fastxai.compile(model, fallback=True)):
            assert error(net(x), want) < 1e-12
            assert error(net.gradient(x, 1), net.gradient(x, 1)) == 0
            assert [m.training for m in model.modules()] == flags
        assert torch.equal(model[0].bn.running_mean, small().bn.running_mean), "statistics stay"

    @pytest.mark.parametrize("fallback", [False, True])
    def test_flags_return_after_an_exception(self, fallback: bool) -> None:
        model = small().train()
        net = fastxai.compile(model, fallback=fallback)
        with warnings.catch_warnings(), pytest.raises(RuntimeError):
            warnings.simplefilter("ignore")
            net.gradient(torch.zeros(2, 7, 5, 5, dtype=torch.float64))
        assert all(m.training for m in model.modules())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


class TestReport:
    def test_names_module_operation_and_place(self) -> None:
        model, x = small(), batch()
        net = fastxai.compile(model)
        report = net.report(x)
        assert ("conv", "conv2d", "engine") in report.rows and ("pool", "max_pool2d", "engine") in report.rows
        text = str(report)
        assert text.splitlines()[0] == "every operation runs on the engine"
        assert all(path in text and name in text for path, name, _ in report.rows)
        assert net.report() == report == net.report(SHAPE)

    def test_names_what_is_missing(self) -> None:
        torch.manual_seed(0)
        net = fastxai.compile(nn.Sequential(nn.Flatten(), nn.Linear(60, 8), nn.LayerNorm(8), nn.Linear(8, 3)))
        with pytest.warns(UserWarning, match="layer_norm"):
            report = net.report(torch.zeros(1, *SHAPE))
        assert not report.engine
        missing = [row for row in report.rows if row[2] != "engine"]
        assert [(path, name) for path, name, _ in missing] == [("2", "layer_norm")]
        assert "layer_norm" in str(report).splitlines()[0]

    def test_is_of_the_input_seen_last(self) -> None:
        model = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8, 3))
        net = fastxai.compile(model)
        small_, large = torch.rand(1, 2, 2, 2), torch.rand(1, 2, 4, 4)
        for x in (small_, large, small_):
            net(x)
            assert net.report() is net.report(x)
