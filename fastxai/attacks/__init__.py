"""Attacks on explanation maps and on predictions, batched."""

from fastxai.attacks import dissimilarities as dissimilarities
from fastxai.attacks import target_maps as target_maps
from fastxai.attacks._ball import Ball as Ball
from fastxai.attacks._ball import Restarts as Restarts
from fastxai.attacks._result import AscentResult as AscentResult
from fastxai.attacks._result import AttackResult as AttackResult
from fastxai.attacks._result import MapAscentResult as MapAscentResult
from fastxai.attacks._result import Metrics as Metrics
from fastxai.attacks._result import OutputChange as OutputChange
from fastxai.attacks._result import Similarity as Similarity
from fastxai.attacks.adversarial_ifia import AdversarialIFIA as AdversarialIFIA
from fastxai.attacks.ifia import IFIA as IFIA
from fastxai.attacks.manipulation import Manipulation as Manipulation
from fastxai.attacks.pgd import PGD as PGD

__all__ = [
    "IFIA",
    "PGD",
    "AdversarialIFIA",
    "AscentResult",
    "AttackResult",
    "Ball",
    "Manipulation",
    "MapAscentResult",
    "Metrics",
    "OutputChange",
    "Restarts",
    "Similarity",
    "dissimilarities",
    "target_maps",
]
