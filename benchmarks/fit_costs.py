"""Fit the tables of costs that come with the package to a record of ``widefield tune --record``.

    widefield tune --problems 320 --output /dev/shm/costs.json --record benchmarks/results/cpu_calibration.json
    python benchmarks/fit_costs.py benchmarks/results/cpu_calibration.json

The record at hand was taken on a CPU with AVX2. The table for AVX-512 is a guess until somebody tunes there: oneDNN's
multiplications are taken as 4.5 times as fast, as a comparison of single layers on two such machines suggests
(channels_last C128 56x56 K31 at batch 4: 10.6 against 50 ms, two threads each), all else as equal.
"""

from __future__ import annotations

import sys
from pathlib import Path

from widefield.bench import calibration, records

TABLES = Path(__file__).parent.parent / "src" / "widefield" / "ops" / "depthwise_conv" / "cost_tables"
AVX512_FACTOR = 4.5

record = records.read(Path(sys.argv[1]))
table = calibration.fit(record)
guess = calibration.with_faster_vectors(table, "AVX512", AVX512_FACTOR)
for name, costs in (("avx2", table), ("avx512", guess)):
    (TABLES / f"{name}.json").write_text(costs.as_json(), encoding="utf-8")
print(f"typical error of a predicted time: {calibration.typical_error(table, record):.1%}")
