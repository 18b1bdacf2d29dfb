"""How many threads torch may take while it checks a step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """A step's matrices are too small to share: threads that wait for each other take the cores from everyone.

    Measured on two cores with other work on them: a calibration of 9 seconds took 150 with torch's own choice.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
