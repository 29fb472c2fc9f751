"""Which form runs: the one asked for, else the first of an order by map and shape that does not refuse."""

from __future__ import annotations

from widefield._core.checks import check
from widefield.ops.backends import Pass
from widefield.ops.depthwise_conv.fft import FftBackend
from widefield.ops.depthwise_conv.maps import chosen
from widefield.ops.depthwise_conv.order import machine
from widefield.ops.peripheral_conv.box_rows import BoxRowsForm
from widefield.ops.peripheral_conv.expanded import ExpandedForm
from widefield.ops.peripheral_conv.form import Form, Map
from widefield.ops.peripheral_conv.problem import PeripheralProblem
from widefield.ops.peripheral_conv.spectral import SpectralForm
from widefield.ops.peripheral_conv.summed_area import SummedAreaForm
from widefield.ops.peripheral_conv.triton.form import TritonForm

FORMS: tuple[Form, ...] = (ExpandedForm(), SpectralForm(), BoxRowsForm(), SummedAreaForm(), TritonForm())
FORM_NAMES = tuple(form.name for form in FORMS)

LARGEST_SMALL_KERNEL = 13
"""Up to which the expanded kernel is small enough not to matter."""

MOST_CELLS = 64
"""On an axis, up to which products with the cells' waves cost less than a transform of the taps.

Measured on maps of 56 x 56 with kernels that share nothing: 51 cells take 0.90 to 0.97 of the time of the expanded
form, 101 cells 1.01 to 1.27.
"""


def order(problem: PeripheralProblem, map_: Map) -> tuple[str, ...]:
    """Return the names of the forms that may run one map, best first.

    On a CPU the spectral form comes first for large kernels whose dense convolution would run in the frequency domain:
    it does the same with less work for the kernel. Box sums do not pay there, as `benchmarks/peripheral_forms.py`
    shows. On a GPU nothing has been measured yet.

    Args:
        problem: Clipped to the taps that meet a pixel.
        map_: The map.
    """
    cells = max(problem.rows.parameters, problem.columns.parameters)
    is_fitting = max(problem.kernel_size) > LARGEST_SMALL_KERNEL and cells <= MOST_CELLS
    if problem.device_type != "cpu" or not is_fitting:
        return ("expanded",)
    pass_: Pass = "grad_weight" if map_ == "grad_cells" else map_
    _, _, dense = chosen(problem.dense(), pass_, "", machine())
    return ("spectral", "expanded") if isinstance(dense, FftBackend) else ("expanded",)


def choose(problem: PeripheralProblem, map_: Map, form: str, backend: str) -> Form:
    """Return the form for one map.

    Args:
        problem: The shape at hand.
        map_: The map.
        form: A form that must be used, or the empty string.
        backend: The backend of the dense convolution that "expanded" must use, or the empty string.

    Raises:
        InputError: If the form that was asked for refuses; all reasons are listed.
    """
    names = (form,) if form else order(problem, map_)
    reasons: list[str] = []
    for name in names:
        if name == "expanded":
            return ExpandedForm(backend)
        candidate = next(known for known in FORMS if known.name == name)
        refusals = candidate.refusals(problem, map_)
        if not refusals:
            return candidate
        reasons += refusals
    check(
        False,
        f"a problem whose {map_} the form {' or '.join(map(repr, names))} can run",
        f"{problem} ({'; '.join(reasons)})",
        "choose another form or none",
    )
    raise AssertionError("unreachable")
