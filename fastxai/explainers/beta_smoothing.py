"""Beta-smoothing: any map, of the network with softplus in place of ReLU."""

from __future__ import annotations

from torch import Tensor

from fastxai import _check
from fastxai.engine import Net
from fastxai.explainers._base import Explainer, Target

__all__ = ["BetaSmoothing"]


class BetaSmoothing(Explainer):
    """h(x) = h'(x) on the network whose ReLU-like activations are softplus_beta ([M] section 4).

    h' is the map of the wrapped explainer, whichever it is. It costs what h' costs and smooths like ``SmoothGrad`` with
    many samples; the smaller beta, the smoother. The scores are those of the smoothed network, the class that
    ``target=None`` explains is that of the model as given.

    This beta belongs to the map: a view that comes by ``net=`` keeps its weights and loses its activation, so an attack
    that grows a beta of its own still attacks this map, with this beta at every step.

    Attributes:
        explainer: gives h'.
        beta: sharpness of the softplus.
        net: the smoothed view of the wrapped explainer's network.

    >>> net = fastxai.compile(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)))
    >>> smooth = fastxai.explainers.BetaSmoothing(fastxai.explainers.Gradient(net), beta=2.0)
    >>> x = torch.rand(1, 4)
    >>> torch.equal(smooth.attribute(x, 1), net.with_activation("softplus", beta=2.0).gradient(x, 1))
    True
    """

    def __init__(self, explainer: Explainer, beta: float = 1.0) -> None:
        """Wrap ``explainer``.

        Raises:
            TypeError: explainer is no explainer.
            ValueError: beta is not finite and positive.
        """
        _check.instance(explainer, "explainer", Explainer, "be a fastxai explainer")
        super().__init__(explainer.net.with_activation("softplus", beta))
        self.explainer, self.beta = explainer, beta

    def map_and_scores(
        self, x: Tensor, target: Target = None, *, net: Net | None = None, parameters: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Return (h'(x), g(x)), both of the smoothed network; arguments as in the base class."""
        view = self.net if net is None else net.with_activation("softplus", self.beta)
        return self.explainer.map_and_scores(x, target, net=view, parameters=parameters)
