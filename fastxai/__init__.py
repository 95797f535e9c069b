"""fastxai: explanation maps, attacks on them and training against the attacks, on compiled second-order kernels."""

from fastxai._backend import available, backend
from fastxai.engine import Net, compile

__all__ = ["Net", "available", "backend", "compile"]
