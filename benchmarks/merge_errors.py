"""The error that merging makes, for every published network that fits a small machine, with random statistics.

    python benchmarks/merge_errors.py benchmarks/results/merge_errors.json

Largest difference of the logits over the largest logit, in float32 and float64, NCHW and channels_last, for one image
of 96 pixels. BatchNorm statistics, scales and shifts are drawn, and layer scales that start near zero are set to 1,
since a network that ignores its branches shows no error.
"""

from __future__ import annotations

import copy
import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from widefield import create_model, list_models, merge
from widefield.bench.environment import environment

MOST_PARAMETERS = 60e6
LIMITS = {torch.float32: 1e-5, torch.float64: 1e-12}
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def drawn(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = create_model(name).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                for tensor, low, high in (
                    (module.running_mean, -0.5, 0.5),
                    (module.running_var, 0.5, 2.0),
                    (module.weight, 0.5, 1.5),
                    (module.bias, -0.5, 0.5),
                ):
                    assert tensor is not None
                    tensor.uniform_(low, high)
        for key, parameter in model.named_parameters():
            if key.endswith("gamma"):
                parameter.uniform_(0.5, 1.5)
    return model


rows = []
for name in list_models():
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in create_model(name).parameters())
    if size > MOST_PARAMETERS and name != "replknet_31b":
        continue
    model = drawn(name)
    for dtype, limit in LIMITS.items():
        for layout, form in FORMATS.items():
            one = copy.deepcopy(model).to(dtype=dtype, memory_format=form)
            x = (
                torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(1))
                .to(dtype)
                .contiguous(memory_format=form)
            )
            report = merge(one, x)
            again = merge(one, x)
            row = {
                "model": name,
                "dtype": str(dtype).removeprefix("torch."),
                "layout": layout,
                "relative_error": report.relative_error,
                "largest_of_a_unit": max(unit.relative_error for unit in report.unit_errors),
                "parameters": [report.parameters_before, report.parameters_after],
                "units_merged_again": len(again.unit_errors),
                "is_within_limit": report.relative_error < limit,
            }
            rows.append(row)
            print(name, row["dtype"], layout, f"{report.relative_error:.1e}", "" if row["is_within_limit"] else "ABOVE")
record = {"kind": "merge_errors", "environment": asdict(environment("cpu")), "rows": rows}
Path(sys.argv[1]).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
