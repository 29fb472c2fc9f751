"""Look into any network: receptive field, shape bias, kernels, cost, and a page of all that."""

from widefield.analysis.cost import Cost as Cost
from widefield.analysis.cost import measure_cost as measure_cost
from widefield.analysis.features import Features as Features
from widefield.analysis.images import NoiseTensors as NoiseTensors
from widefield.analysis.images import PhotoTensors as PhotoTensors
from widefield.analysis.kernel_weights import KernelWeights as KernelWeights
from widefield.analysis.kernel_weights import measure_kernel_weights as measure_kernel_weights
from widefield.analysis.latency import Latency as Latency
from widefield.analysis.latency import measure_latency as measure_latency
from widefield.analysis.receptive_field import ReceptiveField as ReceptiveField
from widefield.analysis.receptive_field import load_receptive_fields as load_receptive_fields
from widefield.analysis.receptive_field import save_receptive_fields as save_receptive_fields
from widefield.analysis.receptive_field_measurement import measure_receptive_field as measure_receptive_field
from widefield.analysis.receptive_field_measurement import measure_receptive_fields as measure_receptive_fields
from widefield.analysis.report import Report as Report
from widefield.analysis.report import write_report as write_report
from widefield.analysis.shape_bias import ShapeBias as ShapeBias
from widefield.analysis.shape_bias import evaluate_shape_bias as evaluate_shape_bias
from widefield.analysis.theoretical_field import theoretical_receptive_field as theoretical_receptive_field
