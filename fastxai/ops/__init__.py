"""Activations as registered torch ops: fused kernels, differentiable any number of times."""

from fastxai.ops.activation import Softplus, elu, gelu, leaky_relu, relu, relu6, sigmoid, silu, softplus, tanh

__all__ = ["Softplus", "elu", "gelu", "leaky_relu", "relu", "relu6", "sigmoid", "silu", "softplus", "tanh"]
