"""IFIA: the iterative attack on explanations, within a ball and within the class ([F] algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fastxai import _check
from fastxai.attacks._ascent import Label
from fastxai.attacks._far import radius_and_k
from fastxai.attacks._map_ascent import MapAscent
from fastxai.attacks._result import MapAscentResult
from fastxai.explainers import Explainer

__all__ = ["IFIA"]

_GHORBANI = {
    "top_k": {"dissimilarity": "top_k"},
    "mass_centre": {"dissimilarity": "mass_centre"},
    "random": {"dissimilarity": "top_k", "steps": 0, "random_start": "signs"},
}


@dataclass(frozen=True)
class IFIA(MapAscent):
    """Move the map of x as far as it goes, within a ball and within the class ([F] eq. 3-4, algorithm 1).

        x_adv <- project(x_adv + alpha normalise(nabla d_s[S(x_adv), S_T])), while argmax g(x_adv) = argmax g(x)

    S_T is S(x), or a target map; normalise is the sign for "linf" and g / |g|_2 for "l2". The explained class is y, the
    class that must hold is what the model as given predicts on x.

    Two things are not as printed. The algorithm returns the iterate that changed the class; here it is the one with the
    highest d_s among those of the same class, over all restarts, and x itself where there is none. And at x_adv = x
    every dissimilarity but "top_k" has gradient 0: with those the first start is a random point of the ball too.

    ReLU networks bend by the ``curvature`` surrogate: forward pass and maps are ReLU's, its second derivative is
    beta p (1 - p), p = sigmoid(beta a) ([F] section 4). How far the attack gets depends on that beta ([F] figure 5).

    [F]'s S is ``IntegratedGradients`` with zero baseline. IG-NORM's inner attack has the baseline x and
    ``dissimilarity="l1"`` ([F] eq. 8). Baselines that differ between samples are a function of the images where there
    are several restarts: x comes restart by restart then, and alone at first.

    Attributes:
        explainer: S, the map under attack.
        eps: radius of the ball, in the space of x.
        steps: how many; 0 judges the starts alone.
        alpha: step size, in the space of x.
        rel_stepsize: step size over eps, in place of ``alpha``; with neither it is 1.2 / steps.
        norm: "linf" or "l2", over all values of one sample.
        dissimilarity: d_s, a name from ``fastxai.attacks.dissimilarities`` or a function (S(x_adv), S_T) -> [N] that
            treats every sample by itself. One of the library's own functions is the same as its name.
        k: of "top_k".
        reduce: what S is: None is the map as the explainer gives it; "abs_sum" and "sum" have the channels summed, |.|
            or signed, and each map scaled to sum 1. "auto" is "abs_sum" for "top_k", "mass_centre" and "ssim" and for a
            target map without channels, None for the rest.
        beta: sharpness of the surrogate; None: the net as it is. Not used where the explainer's net is a smoothed or
            surrogate view already.
        freeze: a sample whose class changed stops there, as printed; False lets it go on, and come back. What stops
            leaves the batch and costs no more (unless a setting of the explainer belongs to its row, or steps are
            replayed).
        random_start: False starts at x, and further restarts at uniform points of the ball; True takes uniform points
            throughout; "signs" the points x +- eps; None is False where that has a gradient: "top_k", or a target map.
            A restart that begins in another class finds nothing.
        restarts: how often each sample is attacked, all at once.
        bounds: lowest and highest valid value, each a number or one a channel.
        seed: an int or several. Starts are a function of seed, number of the sample and number of the restart.

    Raises:
        TypeError: explainer is no explainer.
        ValueError: a setting is out of range or unknown.

    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> attack = fastxai.IFIA(fastxai.IntegratedGradients(model, n_steps=10), eps=0.1, restarts=2)
    >>> result = attack.perturb(torch.rand(2, 1, 8, 8))
    >>> bool((result.dissimilarity > 0).all()), bool(result.class_kept.all())
    (True, True)
    """

    freeze: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        """Check every setting."""
        self.check_map_settings()
        _check.require(isinstance(self.freeze, bool), "freeze", "be a bool", self.freeze, TypeError)

    @classmethod
    def preset(cls, explainer: Explainer, data: str, **changes: Any) -> IFIA:
        """Return [F]'s attack for attributional robustness: top-k, 7 steps of 1.2/7 eps, beta 1, 3 restarts (table 2).

        Args:
            explainer: in [F] ``IntegratedGradients`` with zero baseline, by a net that takes images in [0, 1].
            data: "mnist", "fashion_mnist", "cifar10", "gtsrb" or "restricted_imagenet": eps and k.
            changes: settings that replace the preset's.

        Raises:
            TypeError: explainer is no explainer, or a setting is unknown.
            ValueError: [F] has no such data set.

        >>> attack = fastxai.IFIA.preset(fastxai.IntegratedGradients(torch.nn.Linear(4, 3)), "mnist")
        >>> attack.eps, attack.k, attack.steps
        (0.3, 50, 7)
        """
        eps, k = radius_and_k(data)
        fixed: dict[str, Any] = {"eps": eps, "k": k, "dissimilarity": "top_k", "beta": 1.0, "restarts": 3}
        return cls(explainer, **(fixed | changes))

    @classmethod
    def ghorbani(cls, explainer: Explainer, kind: str, **changes: Any) -> IFIA:
        """Return an attack of Ghorbani et al. 2019 with its ImageNet settings: 300 steps of .5/255, eps 8/255, k 1000.

        "top_k" drives the map away from its k largest pixels, "mass_centre" moves its centre of mass, "random" adds
        eps times a random sign to every value, once for each restart. Iterates go on after the class has changed.

        Their direction is that of a softplus network, ours that of the curvature surrogate with the same beta, 1. Where
        they start the centre's attack at x, with the centre rounded down, ours starts at a random point.

        Args:
            explainer: the map, by a net that takes images in [0, 1]; in the paper a Gradient, IntegratedGradients or
                DeepLIFT map.
            kind: "top_k", "mass_centre" or "random".
            changes: settings that replace these.

        Raises:
            TypeError: explainer is no explainer, or a setting is unknown.
            ValueError: the kind is unknown.

        >>> fastxai.IFIA.ghorbani(fastxai.Gradient(torch.nn.Linear(4, 3)), "random", restarts=5).random_start
        'signs'
        """
        fixed = {"eps": 8 / 255, "steps": 300, "alpha": 0.5 / 255, "k": 1000, "freeze": False}
        return cls(explainer, **(fixed | _GHORBANI[_check.one_of(kind, "kind", _GHORBANI)] | changes))

    def perturb(
        self,
        x: Tensor,
        y: Label = None,
        target_map: Tensor | None = None,
        *,
        index: Tensor | None = None,
        original_map: Tensor | None = None,
    ) -> MapAscentResult:
        """Attack a batch.

        Args:
            x: inputs [N, C, ...].
            y: the explained class as an int, a LongTensor [N], or None for the model's prediction on x.
            target_map: S_T, [N, C, ...] as the explainer gives it, or [N, ...] with the channels summed as |.|, not
                negative; None is S(x). Where maps are scaled to sum 1 it has a sum, for "top_k" k values beside 0.
            index: the samples' numbers, LongTensor [N], on which random starts depend; 0 .. N-1 if None. With their
                numbers in the data set, samples get the same starts in whatever batch they come.
            original_map: S(x) of class y [N, C, ...], where it is known, and taken as given; computed if None.

        Raises:
            TypeError: x or a map is no floating point tensor, y or index hold no integers.
            ValueError: a shape, dtype, device or range is wrong: x outside the bounds; a map, a score or a target map
                is not finite, nor d_s at x or its gradient where the attack starts; a target map says nothing; or the
                attack is to start where it has no gradient.
            RuntimeError: within ``torch.inference_mode()``.
        """
        return self.run(x, y, target_map, index, original_map, weight=None, freeze=self.freeze)
