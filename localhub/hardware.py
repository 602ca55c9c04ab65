"""What Jobs may run on, with prices to reckon with, as the Hub tells it. Here every flavor is this machine."""

from __future__ import annotations

from typing import Any

#: name, words, vCPU, GB of memory, GB of disk, GPU, how many, GB of memory of each, USD an hour.
_ROWS: tuple[tuple[str, str, int, int, int, str, int, int, float], ...] = (
    ("cpu-basic", "CPU Basic", 2, 16, 50, "", 0, 0, 0.01),
    ("cpu-upgrade", "CPU Upgrade", 8, 32, 50, "", 0, 0, 0.03),
    ("cpu-performance", "CPU Performance", 32, 256, 100, "", 0, 0, 1.90),
    ("t4-small", "Nvidia T4 - small", 4, 15, 50, "T4", 1, 16, 0.40),
    ("t4-medium", "Nvidia T4 - medium", 8, 30, 100, "T4", 1, 16, 0.60),
    ("l4x1", "1x Nvidia L4", 8, 30, 400, "L4", 1, 24, 0.80),
    ("a10g-small", "Nvidia A10G - small", 4, 15, 110, "A10G", 1, 24, 1.00),
    ("a10g-large", "Nvidia A10G - large", 12, 46, 200, "A10G", 1, 24, 1.50),
    ("l40sx1", "1x Nvidia L40S", 8, 62, 380, "L40S", 1, 48, 1.80),
    ("a100-large", "Nvidia A100 - large", 12, 142, 1000, "A100", 1, 80, 2.50),
    ("l4x4", "4x Nvidia L4", 48, 186, 3200, "L4", 4, 24, 3.80),
    ("h200", "Nvidia H200", 23, 256, 3000, "H200", 1, 141, 5.00),
    ("l40sx4", "4x Nvidia L40S", 48, 382, 3200, "L40S", 4, 48, 8.30),
    ("h200x8", "8x Nvidia H200", 184, 2048, 24000, "H200", 8, 141, 40.00),
)

NAMES = frozenset(row[0] for row in _ROWS)


def rows() -> list[dict[str, Any]]:
    """Every flavor as the hardware endpoint tells it: USD for a minute, memory of all its GPUs together."""
    return [_row(*row) for row in _ROWS]


def _row(
    name: str, words: str, cpus: int, memory: int, disk: int, gpu: str, n_gpus: int, vram: int, hourly: float
) -> dict[str, Any]:
    accelerator = {
        "type": "gpu", "model": gpu, "quantity": str(n_gpus), "vram": f"{n_gpus * vram} GB", "manufacturer": "Nvidia",
    }  # fmt: skip
    micro = round(hourly * 1_000_000 / 60)
    return {
        "name": name,
        "prettyName": words,
        "cpu": f"{cpus} vCPU",
        "ram": f"{memory} GB",
        "ephemeralStorage": f"{disk} GB",
        "accelerator": accelerator if gpu else None,
        "unitCostMicroUSD": micro,
        "unitCostUSD": micro / 1_000_000,
        "unitLabel": "minute",
    }
