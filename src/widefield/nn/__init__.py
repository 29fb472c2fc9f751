"""Layers with a branched form for training and a merged form for inference. Needs torch only."""

from widefield.nn.conv_norm import ConvNorm2d as ConvNorm2d
from widefield.nn.decomposed_conv import DecomposedConv2d as DecomposedConv2d
from widefield.nn.depthwise_conv import DepthwiseConv2d as DepthwiseConv2d
from widefield.nn.dilated_reparam_conv import DilatedReparamConv2d as DilatedReparamConv2d
from widefield.nn.dilated_reparam_conv import branch_table as branch_table
from widefield.nn.peripheral_conv import PeripheralConv2d as PeripheralConv2d
from widefield.nn.reparam_conv import ReparamConv2d as ReparamConv2d
from widefield.nn.response_norm import GlobalResponseNorm as GlobalResponseNorm
from widefield.nn.squeeze_excite import SqueezeExcite as SqueezeExcite
