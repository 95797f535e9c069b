"""Training objectives made of terms, and a loop that trains, stops and goes on."""

from fastxai.training.checkpoint import Checkpoint as Checkpoint
from fastxai.training.config import FitConfig as FitConfig
from fastxai.training.cross_entropy import CrossEntropy as CrossEntropy
from fastxai.training.dataset import Dataset as Dataset
from fastxai.training.fit import fit as fit
from fastxai.training.hessian_norm import HessianNorm as HessianNorm
from fastxai.training.objective import Batch as Batch
from fastxai.training.objective import Objective as Objective
from fastxai.training.objective import Term as Term

__all__ = ["Batch", "Checkpoint", "CrossEntropy", "Dataset", "FitConfig", "HessianNorm", "Objective", "Term", "fit"]
