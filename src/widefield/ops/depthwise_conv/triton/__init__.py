"""Triton kernels for CUDA; nothing here imports Triton before a kernel is needed."""

from widefield.ops.depthwise_conv.triton.backend import TritonBackend as TritonBackend
