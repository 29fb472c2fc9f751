"""Fit the tables of costs that come with the package to records of ``widefield tune --record``, one a kind of CPU.

    widefield tune --problems 320 --output costs.json --record benchmarks/results/cpu_calibration.json
    python benchmarks/fit_costs.py benchmarks/results/cpu_calibration*.json

A record's table is that of the vector instructions it was measured with. Which regime a problem belongs to is asked of
the running machine, so the records of other machines are left alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from widefield.bench import calibration, records

TABLES = Path(__file__).parent.parent / "src" / "widefield" / "ops" / "depthwise_conv" / "cost_tables"

for path in sys.argv[1:]:
    record = records.read(Path(path))
    if record.environment.capability != torch.backends.cpu.get_cpu_capability():
        print(f"{path}: measured with {record.environment.capability}, left alone")
        continue
    table = calibration.fit(record)
    (TABLES / f"{table.capability.lower()}.json").write_text(table.as_json(), encoding="utf-8")
    print(f"{table.capability}: typical error of a predicted time {calibration.typical_error(table, record):.1%}")
