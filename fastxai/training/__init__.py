"""Training objectives made of terms, and a loop that trains, stops and goes on."""

from fastxai.training.aat import AAT as AAT
from fastxai.training.adv_aat import AdvAAT as AdvAAT
from fastxai.training.align import Align as Align
from fastxai.training.checkpoint import Checkpoint as Checkpoint
from fastxai.training.config import FitConfig as FitConfig
from fastxai.training.cross_entropy import CrossEntropy as CrossEntropy
from fastxai.training.dataset import Dataset as Dataset
from fastxai.training.far import FAR as FAR
from fastxai.training.far import masks as masks
from fastxai.training.far import zeros as zeros
from fastxai.training.fit import fit as fit
from fastxai.training.hessian_norm import HessianNorm as HessianNorm
from fastxai.training.ig_norm import IGNorm as IGNorm
from fastxai.training.ig_sum_norm import IGSumNorm as IGSumNorm
from fastxai.training.objective import Batch as Batch
from fastxai.training.objective import Objective as Objective
from fastxai.training.objective import Term as Term
from fastxai.training.per_batch import PerBatch as PerBatch
from fastxai.training.pgd_adversarial import PGDAdversarial as PGDAdversarial

__all__ = [
    "AAT",
    "FAR",
    "AdvAAT",
    "Align",
    "Batch",
    "Checkpoint",
    "CrossEntropy",
    "Dataset",
    "FitConfig",
    "HessianNorm",
    "IGNorm",
    "IGSumNorm",
    "Objective",
    "PGDAdversarial",
    "PerBatch",
    "Term",
    "fit",
    "masks",
    "zeros",
]
