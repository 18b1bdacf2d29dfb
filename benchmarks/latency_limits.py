"""What this core can do at best: how fast it reads the weights' bytes, and how fast it multiplies matrices."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from odestream.runtime.arena import aligned
from odestream.runtime.kernels.build import find_compiler

READER = """
typedef float Vec __attribute__((vector_size(64)));
extern "C" float total(const Vec* block, long vectors, long passes) {
    Vec sum[8] = {};
    for (long pass = 0; pass < passes; ++pass) {
        for (long i = 0; i + 8 <= vectors; i += 8) {
#pragma GCC unroll 8
            for (int k = 0; k < 8; ++k) sum[k] += block[i + k];
        }
        asm volatile("" ::: "memory");  // a pass is a pass, however clever the compiler
    }
    for (int k = 1; k < 8; ++k) sum[0] += sum[k];
    float all = 0.0f;
    for (int i = 0; i < 16; ++i) all += sum[0][i];
    return all;
}
"""

PRODUCTS = """
import json, time
import numpy as np, threadpoolctl
threadpoolctl.threadpool_limits(1)
best = {}
for n in (128, 256, 512):
    a, b, out = (np.full((n, n), 0.5, np.float32) for _ in range(3))
    calls, least = max(1, int(2e7 / n**3)), 1e9
    for _ in range(10):
        begin = time.perf_counter()
        for _ in range(calls):
            np.dot(a, b, out=out)
        least = min(least, (time.perf_counter() - begin) / calls)
    best[n] = 2 * n**3 / least
found = next(i for i in threadpoolctl.threadpool_info() if i["user_api"] == "blas")
kernel = f"{found['internal_api']} {found['version']}, {found.get('architecture', 'unknown kernel')}"
print(json.dumps({"flops_per_second": max(best.values()), "by_size": best, "kernel": kernel}))
"""
SLOWING = ("OPENBLAS_CORETYPE", "OPENBLAS_VERBOSE", "OPENBLAS_MAIN_FREE")


@dataclass(frozen=True)
class Reader:
    """A block of floats that is summed in the widest vectors of this core, as often as asked."""

    block: np.ndarray
    total: Callable[[int], float]

    def call(self, passes: int) -> Callable[[], None]:
        """One timed call."""

        def run() -> None:
            self.total(passes)

        return run


def reader(floats: int) -> Reader:
    """A reader of a block of that many floats; it is checked against numpy's sum. CompatError without a compiler."""
    folder = Path(tempfile.mkdtemp())
    source, library = folder / "reader.cpp", folder / "reader.so"
    source.write_text(READER, encoding="utf-8")
    # Not -ffast-math: a library linked with it flushes small numbers to zero in the whole process.
    free = ["-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math"]
    flags = ["-O3", "-march=native", "-funroll-loops", "-shared", "-fPIC", *free, "-Wno-psabi"]
    subprocess.run([find_compiler(), *flags, str(source), "-o", str(library)], check=True)
    function = ctypes.CDLL(str(library)).total
    function.restype, function.argtypes = ctypes.c_float, [ctypes.c_void_p, ctypes.c_long, ctypes.c_long]
    vectors = floats // 16 // 8 * 8
    block = aligned((vectors * 16,), np.float32)
    block[:] = np.random.default_rng(0).random(len(block), np.float32)
    made = Reader(block, lambda passes: float(function(block.ctypes.data, vectors, passes)))
    wanted = float(block.sum(dtype=np.float64))
    if abs(made.total(3) - 3 * wanted) > 1e-3 * wanted:
        raise RuntimeError("the reader does not read the whole block")
    return made


def product_rate() -> dict[str, object]:
    """The rate of numpy's sgemm on one thread, the best of three square sizes, and which kernel ran.

    In a process of its own, without the variables that hold OpenBLAS to another core's kernel.
    """
    environment = {k: v for k, v in os.environ.items() if k not in SLOWING}
    environment["OMP_NUM_THREADS"] = environment["OPENBLAS_NUM_THREADS"] = "1"
    done = subprocess.run([sys.executable, "-c", PRODUCTS], check=True, capture_output=True, text=True, env=environment)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def resident_bytes() -> int:
    """This process's resident memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def timed(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin
