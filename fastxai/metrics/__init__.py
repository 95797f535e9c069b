"""Similarity of two batches of maps or images: one number a sample, on the samples' device, differentiable."""

from fastxai.metrics.mse import mse as mse
from fastxai.metrics.pcc import pcc as pcc
from fastxai.metrics.ssim import ssim as ssim
