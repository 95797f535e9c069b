"""Raw fused kernels without autograd: one family per file, one contract per family."""
