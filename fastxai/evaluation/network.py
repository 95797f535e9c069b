"""Numbers of a network itself: accuracy, norms of its weights and of its Hessian ([R] table 2)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from fastxai import _check
from fastxai.engine import Net

__all__ = ["accuracy", "correct", "hessian_norms", "mean_norm", "weight_norms"]

_LAYERS = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)

Score = Callable[[Tensor], Tensor]


def _chunks(x: Tensor, chunk: int) -> Iterator[slice]:
    """Yield slices of ``chunk`` samples at most; one, empty, of an empty batch."""
    _check.require(isinstance(chunk, int) and chunk >= 1, "chunk", "be an int of at least 1", chunk)
    for start in range(0, max(len(x), 1), chunk):
        yield slice(start, start + chunk)


@torch.no_grad()
def correct(score: Score, x: Tensor, labels: Tensor, *, chunk: int = 256) -> Tensor:
    """Return whether the highest score is that of the label, bool [N].

    Args:
        score: inputs [n, ...] -> class scores [n, K], for any n: a compiled net, or a module in eval mode.
        x: inputs [N, ...], of whatever dtype ``score`` takes: bytes, or the samples' numbers.
        labels: LongTensor [N].
        chunk: how many samples are scored at once.

    Raises:
        TypeError: x is no tensor, or labels hold no integers.
        ValueError: labels have not the shape [N], or chunk is below 1.
    """
    _check.tensor(x, "x", False)
    whole = not _check.tensor(labels, "labels", False).is_floating_point()
    _check.require(whole, "labels", "hold integers", labels.dtype, TypeError)
    _check.shape(labels, "labels", (len(x),))
    found = [score(x[rows]).argmax(1) == labels[rows].to(x.device) for rows in _chunks(x, chunk)]
    return torch.cat(found)


def accuracy(score: Score, x: Tensor, labels: Tensor, *, chunk: int = 256) -> float:
    """Return the share of samples whose highest score is that of the label; NaN of none. Arguments as ``correct``.

    >>> x = torch.tensor([[3.0, 1.0], [0.0, 2.0], [5.0, 4.0], [1.0, 0.0]])
    >>> fastxai.evaluation.accuracy(torch.nn.Identity(), x, torch.tensor([0, 1, 1, 0]))
    0.75
    """
    return correct(score, x, labels, chunk=chunk).double().mean().item()


@torch.no_grad()
def weight_norms(model: nn.Module) -> dict[str, float]:
    """Return ||W||_F of the weight of every convolution and dense layer by the layer's name, in the model's order.

    The weight is taken as it is stored, a kernel once, and without the batch norm behind it; ``theory.layer_norms`` has
    the norms that the theorems are about. [R] table 2's "average weight norm" is their mean.

    Raises:
        TypeError: model is no module.

    >>> linear = torch.nn.Linear(2, 1)
    >>> _ = linear.weight.data.copy_(torch.tensor([[3.0, 4.0]]))
    >>> fastxai.evaluation.weight_norms(torch.nn.Sequential(linear, torch.nn.ReLU()))
    {'0': 5.0}
    """
    _check.require(isinstance(model, nn.Module), "model", "be a torch.nn.Module", type(model).__name__, TypeError)
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, _LAYERS)]
    return {name: torch.linalg.vector_norm(layer.weight.double()).item() for name, layer in layers}


def hessian_norms(
    net: Net,
    x: Tensor,
    target: int | Tensor | None = None,
    *,
    probes: int | None = 1,
    seed: int = 0,
    index: Tensor | None = None,
    chunk: int = 100,
) -> Tensor:
    """Return ||H(x)||_F [N] of the class score by ``net.hessian_norm``, chunk by chunk; zeros if piecewise linear.

    H is that of the net's own input. Of a net compiled with ``mean`` and ``std`` that is the [0, 1] image, so its norm
    is that of D H D, H being the Hessian on the normalised input and D = diag(1 / std).

    Args:
        net: compiled.
        x: inputs [N, ...].
        target: class k as an int, a LongTensor [N], or None for the class that the model as given predicts.
        probes: Gaussian directions a sample ([R] takes one); None: all basis vectors, which is exact.
        seed: of the directions.
        index: numbers of the samples in their data set, LongTensor [N]: each gets directions of its own, so that their
            errors average out; None: 0 .. N - 1.
        chunk: how many samples are computed at once.

    Raises:
        TypeError, ValueError: as for ``net.hessian_norm``; chunk is below 1.

    [R] table 2, appendix E.

    >>> net = fastxai.compile(torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.Softplus()))
    >>> fastxai.evaluation.hessian_norms(net, torch.zeros(5, 4)).shape
    torch.Size([5])
    """
    numbers = _check.index_of(index, x)
    found = []
    with warnings.catch_warnings():
        # It says that the Hessian is zero: here the zeros are the answer.
        warnings.filterwarnings("ignore", "the network is piecewise linear")
        for rows in _chunks(x, chunk):
            k = target[rows] if isinstance(target, Tensor) and target.dim() else target
            found.append(net.hessian_norm(x[rows], k, probes, kind="gaussian", seed=seed, index=numbers[rows]))
    return torch.cat(found)


def mean_norm(norms: Tensor) -> float | None:
    """Return the mean of Hessian norms [N], or None where all are 0: the network is piecewise linear, and has none.

    >>> fastxai.evaluation.mean_norm(torch.zeros(3)), fastxai.evaluation.mean_norm(torch.tensor([1.0, 2.0]))
    (None, 1.5)
    """
    return norms.double().mean().item() if bool((norms != 0).any()) else None
