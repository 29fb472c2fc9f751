"""Convolution with kernels that share parameters over cells: a public function, its operators, and a file a form."""

from widefield.ops.peripheral_conv.api import peripheral_conv2d as peripheral_conv2d
from widefield.ops.peripheral_conv.order import FORM_NAMES as FORM_NAMES
from widefield.ops.peripheral_conv.problem import PeripheralProblem as PeripheralProblem
