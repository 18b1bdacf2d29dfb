"""The CUDA sources on the CPU under the thread, address and undefined-behaviour sanitizers.

Every CUDA thread is a thread to the sanitizer, ordered by barriers alone: two accesses that a GPU may order either way
are a race here, on every run.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from odestream.models.config import Task
from odestream.runtime.kernels.cuda_library import CUDA_LIBRARY_VARIABLE
from tests.export.conftest import CONFIGS, Exported
from tests.helpers.emulated import emulated_library
from tests.helpers.sanitizers import sanitized_environment

REPLAY = """
import os, sys
import numpy as np
from odestream.runtime.backends import open_engine
from odestream.runtime.bundle import read_bundle
bundle = read_bundle(sys.argv[1])
vectors = bundle.vectors()
for processors, room, batch in (("64", 0, 2), ("64", 30_000, 1), ("64", 99 * 1024, 2), ("1", 99 * 1024, 6)):
    os.environ.update(CUDA_ON_CPU_PROCESSORS=processors, CUDA_ON_CPU_BLOCK_MEMORY=str(room))
    binding = open_engine("native-cuda", bundle, 1).bind(batch)
    for t, label in enumerate(("1", "2")):
        for name, values in vectors.inputs.items():
            binding.inputs[name][...] = values[t, np.arange(batch) % vectors.batch]
        binding.run(label)
        binding.swap()
        assert binding.finite()
print("clean")
"""
RUNTIMES = {"thread": ("libtsan.so",), "address": ("libasan.so", "libubsan.so")}


def replay(exported: Exported, task: Task, sanitizer: str, **extra: str) -> subprocess.CompletedProcess[str]:
    environment = {**sanitized_environment(*RUNTIMES[sanitizer]), **extra}
    environment[CUDA_LIBRARY_VARIABLE] = str(emulated_library(sanitizer))
    command = [sys.executable, "-c", REPLAY, str(exported(task)[1].path)]
    return subprocess.run(command, check=False, capture_output=True, text=True, env=environment)


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", list(RUNTIMES))
@pytest.mark.parametrize("task", list(CONFIGS))
def test_a_replay_is_clean(task: Task, sanitizer: str, exported: Exported) -> None:
    done = replay(exported, task, sanitizer)
    assert (done.returncode, done.stdout) == (0, "clean\n"), done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sanitizer", "fault", "report"),
    [
        ("thread", "CUDA_ON_CPU_BLIND", "ThreadSanitizer: data race"),
        ("address", "CUDA_ON_CPU_SHORT", "AddressSanitizer: use-after-poison"),
    ],
)
def test_the_sanitizers_are_awake(sanitizer: str, fault: str, report: str, exported: Exported) -> None:
    """Barriers that order nothing, and shared memory that is too small by 64 bytes, must end the process."""
    done = replay(exported, "forecast", sanitizer, **{fault: "64"})
    assert done.returncode != 0
    assert report in done.stderr
