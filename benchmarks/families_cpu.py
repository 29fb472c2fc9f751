"""Every family merged, on the backends that are chosen and with every depthwise convolution left to PyTorch in NCHW.

    python benchmarks/families_cpu.py benchmarks/results/cpu_families.json

Batch 1, 224 x 224, float32, inference, all networks in one process; each network is timed in turns with its own other
form. SLaK's stripes are merged as stripes for both: as one cross, PyTorch's convolution in NCHW takes far longer.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from widefield.bench import records
from widefield.bench.model import ATEN_NCHW, bench_models, throughput_ratio

NAMES = ("replknet_31b", "slak_t", "pelk_t", "pelk_t_101", "unireplknet_t", "convnext_lk_t", "mobilenetv2_lk")
SECONDS = 12.0

measured = [bench_models(name, backends=("auto", ATEN_NCHW), budget_s=SECONDS) for name in NAMES]
models = tuple(entry for record in measured for entry in record.models)
records.write(replace(measured[0], models=models, planned=len(models)), Path(sys.argv[1]))
for name, record in zip(NAMES, measured, strict=True):
    print(f"{name}: {throughput_ratio(record):.2f} times PyTorch in NCHW")
