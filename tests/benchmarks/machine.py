"""What a benchmark says of the machine it ran on."""

import os
import platform
from pathlib import Path

import torch


def describe_cpu() -> str:
    bf16 = "with" if "avx512_bf16" in next(iter(_cpuinfo("flags")), "").split() else "without"
    model = next(iter(_cpuinfo("model name")), platform.processor() or platform.machine())
    return f"{model}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}, {bf16} avx512_bf16"


def as_list(machine: dict[str, str]) -> str:
    """What was said, but for the device, which is in the heading."""
    return "\n".join(f"- {name}: {value}" for name, value in machine.items() if name != "device") + "\n"


def _cpuinfo(key: str) -> list[str]:
    """What Linux says of each core; nothing elsewhere."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [value.strip() for name, _, value in (line.partition(":") for line in lines) if name.strip() == key]
