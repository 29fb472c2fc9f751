"""Layers with a branched form for training and a merged form for inference. Needs torch only."""

from widefield.nn.conv_norm import ConvNorm2d as ConvNorm2d
from widefield.nn.depthwise_conv import DepthwiseConv2d as DepthwiseConv2d
from widefield.nn.reparam_conv import ReparamConv2d as ReparamConv2d
