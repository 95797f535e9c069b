"""Networks of a study: every combination of some settings, named by them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import product
from typing import Any

__all__ = ["Network", "chosen", "grid", "merged"]


@dataclass(frozen=True)
class Network:
    """One network that a study trains.

    Attributes:
        name: such as "wd5e-4_beta10_hess1e-6".
        settings: of ``fastxai train``, beside the study's.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with the entries of ``over`` put over it, tables within tables.

    >>> fastxai.studies.merged({"attack": {"steps": 3, "lr": 1}}, {"attack": {"lr": 2}})
    {'attack': {'steps': 3, 'lr': 2}}
    """
    result = dict(base)
    for name, value in over.items():
        old = result.get(name)
        result[name] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def grid(axes: Sequence[Mapping[str, Mapping[str, Any]]], exclude: Iterable[str] = ()) -> tuple[Network, ...]:
    """Return a network for every choice of one entry an axis, but for those whose names match ``exclude``.

    >>> axes = [{"a": {"fit": {"lr": 1}}, "b": {"fit": {"lr": 2}}}, {"x": {}, "y": {"model": {"beta": 3}}}]
    >>> [network.name for network in fastxai.studies.grid(axes, ["b_y"])]
    ['a_x', 'a_y', 'b_x']
    """
    if not axes:
        return ()
    made = []
    for entries in product(*(axis.items() for axis in axes)):
        settings: dict[str, Any] = {}
        for _, entry in entries:
            settings = merged(settings, entry)
        made.append(Network("_".join(name for name, _ in entries), settings))
    left_out = {network.name for network in chosen(made, exclude)}
    return tuple(network for network in made if network.name not in left_out)


def chosen(networks: Iterable[Network], patterns: Iterable[str]) -> tuple[Network, ...]:
    """Return the networks whose name matches one of the patterns, in the networks' order; * stands for anything.

    >>> networks = [fastxai.studies.Network(name) for name in ("wd0_relu", "wd0_beta1", "wd1_relu")]
    >>> [network.name for network in fastxai.studies.chosen(networks, ["*_relu"])]
    ['wd0_relu', 'wd1_relu']
    """
    patterns = tuple(patterns)
    return tuple(network for network in networks if any(fnmatchcase(network.name, each) for each in patterns))
