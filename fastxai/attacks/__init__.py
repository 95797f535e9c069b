"""Attacks on explanation maps, batched."""

from fastxai.attacks import target_maps as target_maps
from fastxai.attacks._ball import Ball as Ball
from fastxai.attacks._ball import Restarts as Restarts
from fastxai.attacks._result import AttackResult as AttackResult
from fastxai.attacks._result import Metrics as Metrics
from fastxai.attacks._result import OutputChange as OutputChange
from fastxai.attacks._result import Similarity as Similarity
from fastxai.attacks.manipulation import Manipulation as Manipulation

__all__ = ["AttackResult", "Ball", "Manipulation", "Metrics", "OutputChange", "Restarts", "Similarity", "target_maps"]
