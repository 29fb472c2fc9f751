"""Large-kernel ConvNets in PyTorch."""
