"""Throughput and training steps of whole networks, with and without torch.compile, against Swin-B and ConvNeXt-B."""

from __future__ import annotations

from dataclasses import replace

import timm
import torch
from part import Part

from widefield.bench import records
from widefield.bench.entries import AUTO, ModelEntry
from widefield.bench.model import ModelSettings, bench_models
from widefield.bench.records import Record

OURS = ("replknet_31b", "unireplknet_s", "slak_t", "pelk_b_101")
AGAINST = ("swin_base_patch4_window7_224", "convnext_base")
TINY = ("replknet_nano",)
TINY_AGAINST = ("resnet10t",)
BUDGET_S = 4.0
# Mode, dtype, batch, compiled, layout: the most wanted first.
WAYS = (
    ("inference", torch.bfloat16, 64, False, "contiguous"),
    ("train_step", torch.bfloat16, 64, False, "contiguous"),
    ("inference", torch.bfloat16, 64, False, "channels_last"),
    ("train_step", torch.bfloat16, 64, False, "channels_last"),
    ("inference", torch.float32, 64, False, "contiguous"),
    ("inference", torch.bfloat16, 1, False, "contiguous"),
    ("inference", torch.bfloat16, 64, True, "contiguous"),
    ("train_step", torch.bfloat16, 64, True, "contiguous"),
)


def main() -> None:
    part = Part("networks")
    torch.backends.cudnn.benchmark = True
    ours = [name for name in (TINY if part.is_tiny else OURS) if timm.is_model(name)]
    against = TINY_AGAINST if part.is_tiny else AGAINST
    ways = (("inference", torch.float32, 2, False, "contiguous"), ("train_step", torch.float32, 2, False, "contiguous"))
    entries: list[ModelEntry] = []
    planned = [(name, way) for way in (ways if part.is_tiny else WAYS) for name in ours]
    failures: list[str] = []
    for name, (mode, dtype, batch, is_compiled, layout) in planned:
        if part.seconds_left < 20:
            break
        settings = ModelSettings(
            batch=batch, dtype=dtype, device=part.device, layout=layout, mode=mode, is_compiled=is_compiled
        )
        if part.is_tiny:
            settings = replace(settings, image_size=32)
        backends = (AUTO,) if is_compiled else (AUTO, "aten")
        try:
            budget_s = 0.2 if part.is_tiny else BUDGET_S
            record = bench_models(name, against=against, backends=backends, settings=settings, budget_s=budget_s)
            entries += record.models
        except Exception as error:
            failures.append(f"{name} {mode} compiled={is_compiled}: {type(error).__name__}: {str(error)[:200]}")
        if entries:
            count = len(planned) * (len(against) + 2)
            kept = Record(kind="models", environment=part.environment, planned=count, models=tuple(entries))
            records.write(kept, part.output)
    print(f"networks: {len(entries)} measured")
    for failure in failures:
        print("  failed:", failure)


if __name__ == "__main__":
    main()
