"""Look into any network: receptive field, shape bias, kernels, cost."""
