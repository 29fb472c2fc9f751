"""Depthwise convolution in the frequency domain, whose cost hardly grows with the kernel (CPU)."""

from widefield.ops.depthwise_conv.fft.backend import FftBackend as FftBackend
from widefield.ops.depthwise_conv.fft.library import LibraryTransform as LibraryTransform
from widefield.ops.depthwise_conv.fft.maps import FourierMaps as FourierMaps
from widefield.ops.depthwise_conv.fft.maps import make_transform as make_transform
from widefield.ops.depthwise_conv.fft.matrices import MatrixTransform as MatrixTransform
