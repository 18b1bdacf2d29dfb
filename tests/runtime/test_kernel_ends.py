"""What the kernels' libraries hold is freed where it is dropped, and left alone where the interpreter ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from odestream.runtime.kernels.cuda_library import CUDA_LIBRARY_VARIABLE

pytestmark = pytest.mark.usefixtures("native_library")

FREED = """
import sys
from odestream.runtime.backends import open_engine
from odestream.runtime.bundle import read_bundle
from odestream.runtime.kernels.cuda_library import load_cuda_library
from odestream.runtime.kernels.library import load_library
backend, path, names, goes_on = sys.argv[1:]
library = load_cuda_library() if backend == "native-cuda" else load_library()
for name in names.split():
    setattr(library, name, lambda *_, name=name: print(name))
engine = open_engine(backend, read_bundle(path), 1)
kept = [engine.bind(1)]
if backend == "native":
    kept += [engine.core(), engine.batch()]
if goes_on == "yes":
    engine.close()
    kept.clear()
"""


@pytest.mark.parametrize(
    ("backend", "owned"),
    [
        ("native", ["odestream_batch_destroy", "odestream_destroy", "odestream_stream_destroy"]),
        ("native-cuda", ["odestream_cuda_destroy", "odestream_cuda_release"]),
    ],
)
def test_what_is_dropped_is_freed_and_what_is_held_at_exit_is_left_to_the_system(
    cell_path: Path, cuda_on_cpu: Path, backend: str, owned: list[str]
) -> None:
    """A daemon thread may be inside the library when the interpreter ends."""
    environment = os.environ | {CUDA_LIBRARY_VARIABLE: str(cuda_on_cpu)}

    def freed(goes_on: str) -> list[str]:
        command = [sys.executable, "-c", FREED, backend, str(cell_path), " ".join(owned), goes_on]
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        return sorted(done.stdout.split())

    assert freed("yes") == owned
    assert freed("no") == []
