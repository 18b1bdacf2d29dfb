"""Small tables to train on, written as a user would have them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np


def seasonal_csv(path: Path, rows: int = 160, seed: int = 0) -> Path:
    """A trend with a season of 20 and noise, every unit of time, with some holes and some rows missing."""
    random = np.random.default_rng(seed)
    lines = ["time,level,other"]
    for t in range(rows):
        if random.random() < 0.05:
            continue
        level = 100 + 0.02 * t + math.sin(2 * math.pi * t / 20) + 0.05 * random.standard_normal()
        first = "" if random.random() < 0.05 else f"{level:.4f}"
        lines.append(f"{t},{first},{random.standard_normal():.4f}")
    path.write_text("\n".join(lines) + "\n")
    return path


def classes_csv(path: Path, streams: int = 12, rows: int = 12, seed: int = 0) -> Path:
    """Streams of three classes that differ in their level, interleaved, at irregular times."""
    random = np.random.default_rng(seed)
    lines = ["stream,time,value,kind"]
    for t in range(rows):
        for s in range(streams):
            value = s % 3 + 0.1 * random.standard_normal()
            lines.append(f"s{s},{t + random.random() * 0.9:.4f},{value:.4f},{'abc'[s % 3]}")
    path.write_text("\n".join(lines) + "\n")
    return path
