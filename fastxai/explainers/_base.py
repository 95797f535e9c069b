"""What every explanation map is: an explainer of one net."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from fastxai import _check
from fastxai.engine import Net, compile

__all__ = ["Explainer"]

Target = int | Tensor | None


class Explainer(ABC):
    """A map h(x) of x's shape. Subclasses give ``map_and_scores`` and nothing else.

    Attributes:
        net: the compiled network that is explained.
        rows_alike: whether rows of a batch may come and go because nothing but x and the class belongs to one. Attacks
            drop samples that are done where a class itself says so, and freeze them elsewhere.
    """

    rows_alike: bool = False

    def __init__(self, net: Net | nn.Module) -> None:
        """Explain ``net``; a module is compiled first.

        Raises:
            TypeError: net is neither a compiled net nor a module.
        """
        fits = isinstance(net, (Net, nn.Module))
        _check.require(fits, "net", "be a compiled net or a torch.nn.Module", type(net).__name__, TypeError)
        self.net = net if isinstance(net, Net) else compile(net)

    def attribute(self, inputs: Tensor, target: Target = None) -> Tensor:
        """Return the map h(x), differentiable once in the inputs and in the model's parameters.

        Args:
            inputs: x [N, ...].
            target: the explained class k as an int, a LongTensor [N], or None for the class that the model as given
                predicts.

        Returns:
            The map, of x's shape.

        Raises:
            TypeError: inputs is no floating point tensor, target no integer.
            ValueError: inputs or target have the wrong shape, dtype, device or range.
            RuntimeError: at the second differentiation of a map; a net compiled with ``fallback=True`` allows it.
        """
        return self.map_and_scores(_check.tensor(inputs, "inputs"), target)[0]

    @abstractmethod
    def map_and_scores(
        self, x: Tensor, target: Target = None, *, net: Net | None = None, parameters: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Return (h(x), g(x) [N, K]) from one pass: what attacks and objectives are made of.

        Args:
            x: inputs [N, ...].
            target: as for ``attribute``.
            net: another view of the explained network (smoothed, say); by default the explainer's own.
            parameters: False spares the gradients of the parameters.
        """
