"""What is on the machine."""

from __future__ import annotations

import subprocess

import torch
from part import Part


def main() -> None:
    part = Part("machine")
    part.facts = {"cudnn": torch.backends.cudnn.version(), "arch_list": torch.cuda.get_arch_list()}
    for command in (("nvidia-smi",), ("nvidia-smi", "-q", "-d", "CLOCK,POWER"), ("nvcc", "--version")):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
            part.add(command=" ".join(command), output=done.stdout[-4000:])
        except OSError as error:
            part.add(command=" ".join(command), output=f"not here: {error}")
    if part.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        names = ("name", "total_memory", "multi_processor_count", "L2_cache_size")
        part.add(command="properties", output={name: getattr(properties, name) for name in names})
    part.write(is_complete=True)


if __name__ == "__main__":
    main()
