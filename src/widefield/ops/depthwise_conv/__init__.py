"""Depthwise convolution: one public module (`api`), the registered operators, and one file for each backend."""

from widefield.ops.depthwise_conv.api import depthwise_conv1d as depthwise_conv1d
from widefield.ops.depthwise_conv.api import depthwise_conv2d as depthwise_conv2d
from widefield.ops.depthwise_conv.order import explain as explain
from widefield.ops.depthwise_conv.problem import Problem as Problem
