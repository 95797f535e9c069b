"""Theory: what curvature says about how far a map can be moved, computed through Hessian-vector products."""

from fastxai.theory.curvature import LevelChange as LevelChange
from fastxai.theory.curvature import level_change as level_change
from fastxai.theory.curvature import level_curve as level_curve
from fastxai.theory.curvature import mean_curvature as mean_curvature
from fastxai.theory.curvature import normal as normal
from fastxai.theory.curvature import principal_curvatures as principal_curvatures
from fastxai.theory.curvature import second_fundamental_form as second_fundamental_form
from fastxai.theory.spectrum import Estimate as Estimate
from fastxai.theory.spectrum import Spectrum as Spectrum
from fastxai.theory.spectrum import frobenius_norm as frobenius_norm
from fastxai.theory.spectrum import hessian as hessian
from fastxai.theory.spectrum import spectral_norm as spectral_norm
from fastxai.theory.spectrum import spectrum as spectrum
