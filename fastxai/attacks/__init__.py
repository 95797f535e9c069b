"""Attacks on explanation maps, batched."""

from fastxai.attacks._result import AttackResult as AttackResult
from fastxai.attacks._result import Metrics as Metrics
from fastxai.attacks._result import OutputChange as OutputChange
from fastxai.attacks._result import Similarity as Similarity
from fastxai.attacks.manipulation import Manipulation as Manipulation

__all__ = ["AttackResult", "Manipulation", "Metrics", "OutputChange", "Similarity"]
