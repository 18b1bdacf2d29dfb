"""Processes that load a library with sanitizers into a Python without."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from odestream.runtime import CompatError
from odestream.runtime.kernels.build import find_compiler


def sanitized_environment(*runtimes: str) -> dict[str, str]:
    """This process's environment with the compiler's sanitizer `runtimes` ("libasan.so") loaded first.

    The test is skipped where there is no compiler or it brings none of them.
    """
    try:
        compiler = find_compiler()
    except CompatError as error:
        pytest.skip(str(error))
    found = [_runtime(compiler, name) for name in runtimes]
    if None in found:
        pytest.skip("the compiler brings no sanitizers")
    # Python itself never frees all that it has, and libraries of other packages are not what is tested.
    options = {
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "TSAN_OPTIONS": "halt_on_error=1 ignore_noninstrumented_modules=1",
    }
    return {**os.environ, **options, "LD_PRELOAD": " ".join(map(str, found))}


def _runtime(compiler: str, name: str) -> Path | None:
    done = subprocess.run([compiler, f"-print-file-name={name}"], check=True, capture_output=True, text=True)
    path = Path(done.stdout.strip())
    return path.resolve() if path.is_absolute() else None
