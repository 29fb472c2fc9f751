"""Functional operators: tensors in, tensors out. One trilinear form, three maps, a backend for each; torch only."""

from widefield.ops.backends import Pass as Pass
from widefield.ops.depthwise_conv import Problem as Problem
from widefield.ops.depthwise_conv import depthwise_conv1d as depthwise_conv1d
from widefield.ops.depthwise_conv import depthwise_conv2d as depthwise_conv2d
from widefield.ops.depthwise_conv import explain as explain
from widefield.ops.dispatch import Candidate as Candidate
from widefield.ops.dispatch import Explanation as Explanation
from widefield.ops.dispatch import use_backend as use_backend
