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
        data: the data set that it is trained and measured on, by the name that the study gives it; "" where it has one.
        start: the network of the study whose weights it begins with; "" for random ones.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    data: str = ""
    start: str = ""


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

    An entry holds settings of ``fastxai train``, and may name the network's "data_set" and "start"; "" takes back
    what an axis before said.

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
        about = {name: settings.pop(name, "") for name in ("data_set", "start")}
        made.append(Network("_".join(name for name, _ in entries), settings, about["data_set"], about["start"]))
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
