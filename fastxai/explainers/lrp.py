"""Layer-wise relevance propagation."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fastxai import _check
from fastxai.engine import Net
from fastxai.engine.rules import COMPOSITES, Composite
from fastxai.explainers._rule_based import RuleBased

__all__ = ["LRP"]

Bound = float | Sequence[float] | Tensor


class LRP(RuleBased):
    """Relevance of 1 (or g_k) at the explained score, handed down layer by layer in proportion ([M] eq. 1-3).

    Composites by name, for inputs in the box [low, high]:

        "zplus_zb"             z+ everywhere, zB at the first layer: [M]'s
        "epsilon_plus"         epsilon at dense layers, z+ (bias included) at convolutions: zennit's EpsilonPlus
        "epsilon_gamma_box"    epsilon, gamma at convolutions, zB first: zennit's EpsilonGammaBox
        "epsilon_alpha2_beta1" epsilon, alpha 2 beta 1 at convolutions: zennit's EpsilonAlpha2Beta1
        "epsilon"              epsilon everywhere: Captum's default

    or one's own ``fastxai.engine.rules.Composite`` (``fastxai.engine.rules.lrp`` fills in LRP's usual rules). Batch
    norms are folded into their layer; relevance passes activations of any kind and batch norms that cannot be folded,
    splits at sums and averages in proportion, and goes to the winner of a max-pool.

    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8, bias=False), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> h = fastxai.LRP(model, composite="zplus_zb", low=0.0, high=1.0).attribute(torch.rand(2, 4), 1)
    """

    rows_alike = True

    def __init__(
        self,
        net: Net | nn.Module,
        composite: str | Composite = "epsilon_plus",
        *,
        low: Bound | None = None,
        high: Bound | None = None,
        seed: str = "one",
    ) -> None:
        """Explain ``net``; a module is compiled first.

        Args:
            net: the network.
            composite: a name from the list above, or a composite.
            low: lowest value of x, a number or one a channel; 0 where the net normalises x itself (``mean``, ``std``).
            high: highest value of x; 1 where the net normalises x itself.
            seed: "one" starts with relevance 1 ([M] eq. 1), "score" with g_k(x) (Captum's, and [M]'s code).

        Raises:
            TypeError: net is neither a compiled net nor a module, composite neither a name nor a composite.
            ValueError: composite or seed is unknown, or a composite with zB lacks the box.
        """
        super().__init__(net, seed)
        if isinstance(composite, Composite):
            self.composite = composite
            return
        kind = type(composite).__name__
        _check.require(isinstance(composite, str), "composite", "be a name or a rules.Composite", kind, TypeError)
        _check.one_of(composite, "composite", tuple(COMPOSITES))
        boxed = composite in ("zplus_zb", "epsilon_gamma_box")
        if boxed and self.net.normalises:
            low, high = 0.0 if low is None else low, 1.0 if high is None else high
        given = not boxed or (low is not None and high is not None)
        _check.require(given, "low, high", f"be given for composite {composite!r} on raw inputs", (low, high))
        self.composite = COMPOSITES[composite](low, high)
