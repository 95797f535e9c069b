"""Proportional redistribution: the one formula of LRP's rules, which are rows of a table over it.

z = sum_m W_m psi_m(x) + b_m;  S = kappa r / stab(z);  C_m = W_m^T S;  r_in = sum psi_m(x) C_m

adjoint of t at r_in, with e_m = t psi_m(x), dS = sum_m W_m e_m and q = dS / stab(z):
t_out = kappa q;  dz = -q S
source on x: sum_m psi_m'(x) (t C_m + W_m^T dz);  dW_m = S (x) e_m + dz (x) psi_m;  db_m = sum dz
where z is the node's own output y, dz is a source on y, and W^T dz, dz (x) x and sum dz come with the last sweep
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastxai import _check
from fastxai.engine.jets import Linear, Node, add
from fastxai.engine.nodes.bias import Bias
from fastxai.engine.rules._rule import Rule, Site, Sources, is_layer
from fastxai.engine.weights import Apply, Expr
from fastxai.kernels import proportional as kernel

__all__ = ["OWN", "Group", "Proportional", "Term", "negative", "positive"]

Transform = Callable[[Tensor], Tensor]
_ByPart = dict[str, Sequence[Tensor]]


def positive(w: Tensor) -> Tensor:
    """Return max(w, 0)."""
    return w.clamp(min=0)


def negative(w: Tensor) -> Tensor:
    """Return min(w, 0)."""
    return w.clamp(max=0)


@dataclass(frozen=True)
class Group:
    """One summand W_m psi_m(x) + b_m of z.

    Attributes:
        part: psi, of the input x: "all" (x), "positive" (max(x, 0)), "negative" (min(x, 0)) or "ones" (1).
        weight: W_m as a function of W; None for the node's own output, z = y.
        bias: b_m as a function of b, or None for none.
    """

    part: str = "all"
    weight: Transform | None = None
    bias: Transform | None = None


OWN = Group()


@dataclass(frozen=True)
class Term:
    """A share kappa of the relevance, distributed by the groups of one z.

    Attributes:
        groups: the summands of z.
        kappa: the share.
        sign: where the term acts: where the node's output y has this sign (1 or -1), or everywhere (0).
    """

    groups: tuple[Group, ...]
    kappa: float = 1.0
    sign: int = 0


def _psi(part: str, x: Tensor) -> Tensor:
    match part:
        case "all":
            return x
        case "positive":
            return x.clamp(min=0)
        case "negative":
            return x.clamp(max=0)
        case _:
            return torch.ones_like(x)


def _bend(part: str, x: Tensor, cotangent: Tensor) -> Tensor | None:
    """Return psi'(x) times a cotangent, None for zero."""
    match part:
        case "all":
            return cotangent
        case "positive":
            return torch.where(x >= 0, cotangent, 0)
        case "negative":
            return torch.where(x <= 0, cotangent, 0)
        case _:
            return None


@dataclass(frozen=True)
class _Place:
    """A group with the positions of its weight and bias among the site's (None: the node's own output; no bias)."""

    group: Group
    weight: int | None
    bias: int | None


@dataclass(frozen=True)
class Proportional(Rule):
    """Relevance in proportion to what each input contributes; a subclass gives ``terms``.

    Attributes:
        stabilizer: epsilon of stab(z) = z + epsilon sign(z), sign(0) = 1; > 0.

    Raises:
        ValueError: the stabilizer is not positive.
    """

    stabilizer: float = 1e-6

    def __post_init__(self) -> None:
        _check.positive(self.stabilizer, "stabilizer")

    @abstractmethod
    def terms(self, *, signed: bool) -> tuple[Term, ...]:
        """Return the rule's row of the table; ``signed`` is False where the input is known to be >= 0."""

    @property
    def proportional(self) -> bool:
        """True unless a group leaves its input aside."""
        return all(group.part != "ones" for term in self.terms(signed=True) for group in term.groups)

    def _columns(self, node: Any) -> tuple[list[Transform], list[Transform]]:
        """Return every distinct W_m and b_m of the terms, as functions of W and b."""
        groups = [group for term in self.terms(signed=node.signed) for group in term.groups]
        weights = dict.fromkeys(group.weight for group in groups if group.weight is not None)
        biases = dict.fromkeys(group.bias for group in groups if group.bias is not None and node.own_params > 1)
        return list(weights), list(biases)

    def params(self, node: Node) -> list[Expr]:
        """Return every distinct W_m, then every distinct b_m."""
        if not isinstance(node, (Linear, Bias)):
            raise TypeError(f"{type(self).__name__} needs a linear map, {type(node).__name__} at {node.path!r} is none")
        weights, biases = self._columns(node)
        if weights and not is_layer(node):
            raise TypeError(f"{type(self).__name__} needs a weight, {type(node).__name__} at {node.path!r} has none")
        made: list[Expr] = [Apply(f, (node.params[0],), {}) for f in weights]
        return made + [Apply(f, (node.params[1],), {}) for f in biases]

    def _table(self, site: Site) -> list[tuple[Term, list[_Place]]]:
        weights, biases = self._columns(site.node)
        first = site.node.own_params

        def place(group: Group) -> _Place:
            w = None if group.weight is None else first + weights.index(group.weight)
            at = biases.index(group.bias) if group.bias is not None and biases else None
            b = None if at is None else first + len(weights) + at
            return _Place(group, w, b)

        terms = self.terms(signed=site.node.signed)
        if site.closed:
            terms = [replace(term, sign=0) for term in terms if term.sign >= 0]
        return [(term, [place(group) for group in term.groups]) for term in terms]

    def explain(self, site: Site, xs: Sequence[Tensor], y: Tensor, r: Tensor) -> tuple[Sequence[Tensor], Any]:
        """Return sum psi_m C_m per input; arguments as in the base class."""
        table, alone = self._table(site), self._alone(site, xs)
        psis = _parts(table, xs)
        pulled: _ByPart = {}
        saved = []
        for term, places in table:
            z = self._z(site, places, psis, y, "refined" if alone else "any")
            shares = kernel.share(r, z, self._shares(term, alone), y)
            for place in places:
                _join(pulled, place.group.part, site.node.transpose(_weight(site, place), shares))
            saved.append((z, shares))
        below: _ByPart = {}
        for part, cs in pulled.items():
            _join(below, "all", [psi * c for psi, c in zip(psis[part], cs, strict=True)])
        return below["all"], (saved, pulled)

    def _alone(self, site: Site, xs: Sequence[Tensor]) -> bool:
        """Return whether outputs whose contributions are all zero must share nothing.

        Over a tiny stabilizer their shares are large, and tiles would let roundings of them reach other inputs. The map
        is the same without, and its derivative but for that of zeros, which no ReLU lets pass.
        """
        layer = is_layer(site.node) and not site.node.signed and self.proportional
        return layer and site.node.mixes(site.weight, xs[0])

    def _shares(self, term: Term, alone: bool) -> kernel.Shares:
        return kernel.Shares(self.stabilizer, term.kappa, term.sign, alone)

    @staticmethod
    def _z(site: Site, places: list[_Place], psis: _ByPart, y: Tensor, tiles: str) -> Tensor:
        z: Tensor | None = None
        for place in places:
            if place.weight is None:
                z = add(z, y)
            else:
                bias = None if place.bias is None else site.weights[place.bias]
                z = add(z, site.node.affine(site.weights[place.weight], bias, psis[place.group.part][0], tiles))
        assert z is not None
        return z

    def adjoint(self, site: Site, xs: Sequence[Tensor], y: Tensor, saved: Any, ts: Sequence[Tensor]) -> Sources:
        """Return the adjoint of the module's formula; arguments as in the base class."""
        table, alone, (kept, pulled) = self._table(site), self._alone(site, xs), saved
        psis = _parts(table, xs)
        es = {part: [t * psi for t, psi in zip(ts, of, strict=True)] for part, of in psis.items()}
        t_out: Tensor | None = None
        on_y: Tensor | None = None
        back: _ByPart = {}
        grads: dict[int, Tensor] = {}
        for (term, places), (z, shares) in zip(table, kept, strict=True):
            d_shares: Tensor | None = None
            for place in places:
                w, e, psi = _weight(site, place), es[place.group.part], psis[place.group.part]
                # What is divided by a small z must not hold its neighbours' roundings either.
                more = site.node.affine(w, None, e[0], "refined", (psi[0], z)) if alone else site.node.apply(w, *e)
                d_shares = add(d_shares, more)
            assert d_shares is not None
            t, dz = kernel.adjoint(d_shares, z, shares, self._shares(term, alone), y)
            t_out = add(t_out, t)
            for place in places:
                part = place.group.part
                if place.weight is None:
                    on_y = add(on_y, dz)
                else:
                    _join(back, part, site.node.transpose(_weight(site, place), dz))
                _collect(site, grads, place, (psis[part][0], es[part][0], shares, dz))
        assert t_out is not None
        on_x: list[Tensor | None] = [None] * len(xs)
        for part, cs in pulled.items():
            for i, (x, t, c) in enumerate(zip(xs, ts, cs, strict=True)):
                mu = back[part][i].addcmul_(t, c) if part in back else t * c
                on_x[i] = add(on_x[i], _bend(part, x, mu))
        return Sources(t_out, on_x, on_y, grads)


def _parts(table: list[tuple[Term, list[_Place]]], xs: Sequence[Tensor]) -> _ByPart:
    """Return every psi(xs) of the table."""
    parts = dict.fromkeys(place.group.part for _, places in table for place in places)
    return {part: [_psi(part, x) for x in xs] for part in parts}


def _join(sums: _ByPart, part: str, more: Sequence[Any]) -> None:
    """Add tensors, one per input, to those of a part."""
    sums[part] = [a + b for a, b in zip(sums[part], more, strict=True)] if part in sums else more


def _weight(site: Site, place: _Place) -> Any:
    return site.weight if place.weight is None else site.weights[place.weight]


def _collect(
    site: Site, grads: dict[int, Tensor], place: _Place, operands: tuple[Tensor, Tensor, Tensor, Tensor]
) -> None:
    """Add dW_m and db_m where they are wanted."""
    psi, e, shares, dz = operands
    if place.weight is None:
        if site.weight is not None and 0 in site.wanted:
            _accumulate(grads, 0, site.node.weight_grad(site.weight, shares, e))
    elif place.weight in site.wanted:
        rows = torch.cat([shares, dz]), torch.cat([e, psi])
        _accumulate(grads, place.weight, site.node.weight_grad(_weight(site, place), *rows))
    if place.bias is not None and place.bias in site.wanted:
        _accumulate(grads, place.bias, site.node.bias_grad(dz))


def _accumulate(grads: dict[int, Tensor], position: int, grad: Tensor) -> None:
    grads[position] = grads[position] + grad if position in grads else grad
