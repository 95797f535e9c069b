"""Explanation maps: Captum's ``.attribute``, differentiable in the inputs and in the model's parameters."""

from fastxai.explainers._base import Explainer as Explainer
from fastxai.explainers.beta_smoothing import BetaSmoothing as BetaSmoothing
from fastxai.explainers.gradient import Gradient as Gradient
from fastxai.explainers.guided_backprop import GuidedBackprop as GuidedBackprop
from fastxai.explainers.input_x_gradient import InputXGradient as InputXGradient
from fastxai.explainers.integrated_gradients import IntegratedGradients as IntegratedGradients
from fastxai.explainers.lrp import LRP as LRP
from fastxai.explainers.pattern_attribution import PatternAttribution as PatternAttribution
from fastxai.explainers.patterns import Patterns as Patterns
from fastxai.explainers.patterns import PatternTrainer as PatternTrainer
from fastxai.explainers.postprocess import reduce_map as reduce_map
from fastxai.explainers.quadrature import quadrature as quadrature
from fastxai.explainers.saliency import Saliency as Saliency
from fastxai.explainers.smooth_grad import SmoothGrad as SmoothGrad

__all__ = [
    "LRP",
    "BetaSmoothing",
    "Explainer",
    "Gradient",
    "GuidedBackprop",
    "InputXGradient",
    "IntegratedGradients",
    "PatternAttribution",
    "PatternTrainer",
    "Patterns",
    "Saliency",
    "SmoothGrad",
    "quadrature",
    "reduce_map",
]
