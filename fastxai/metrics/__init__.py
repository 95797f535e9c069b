"""How alike two batches of maps or images are, and how good a map is: one number a sample, on the samples' device."""

from fastxai.metrics.completeness import completeness as completeness
from fastxai.metrics.cosine import cosine as cosine
from fastxai.metrics.kendall_tau import kendall_tau as kendall_tau
from fastxai.metrics.mse import mse as mse
from fastxai.metrics.pcc import pcc as pcc
from fastxai.metrics.pixel_flipping import FlippingCurve as FlippingCurve
from fastxai.metrics.pixel_flipping import PixelFlipping as PixelFlipping
from fastxai.metrics.pixel_flipping import pixel_flipping as pixel_flipping
from fastxai.metrics.ssim import ssim as ssim
from fastxai.metrics.top_k import top_k_intersection as top_k_intersection
