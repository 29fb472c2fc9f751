"""Functional operators: tensors in, tensors out. One trilinear form, three maps, a backend for each; torch only."""

from widefield.ops.backends import Pass as Pass
from widefield.ops.decomposed_conv import cross_kernel as cross_kernel
from widefield.ops.decomposed_conv import decomposed_conv2d as decomposed_conv2d
from widefield.ops.depthwise_conv import Problem as Problem
from widefield.ops.depthwise_conv import depthwise_conv1d as depthwise_conv1d
from widefield.ops.depthwise_conv import depthwise_conv2d as depthwise_conv2d
from widefield.ops.depthwise_conv import explain as explain
from widefield.ops.dispatch import Candidate as Candidate
from widefield.ops.dispatch import Explanation as Explanation
from widefield.ops.dispatch import use_backend as use_backend
from widefield.ops.peripheral_conv import peripheral_conv2d as peripheral_conv2d
from widefield.ops.peripheral_kernel import SharingGrid as SharingGrid
from widefield.ops.peripheral_kernel import peripheral_kernel as peripheral_kernel
from widefield.ops.peripheral_kernel import sum_cells as sum_cells
