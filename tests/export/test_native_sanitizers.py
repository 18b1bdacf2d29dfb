"""The native step under the address and undefined-behaviour sanitizers, on stored chains and on batches."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from odestream.models.config import Task
from odestream.runtime import CompatError
from odestream.runtime.kernels.build import build, find_compiler
from odestream.runtime.kernels.library import LIBRARY_VARIABLE
from tests.export.conftest import CONFIGS, Exported

SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g", "-O1")
REPLAY = """
import sys
import numpy as np
from odestream.runtime.backends import open_engine
from odestream.runtime.bundle import read_bundle
from odestream.runtime.replay import failures, verify_vectors
bundle = read_bundle(sys.argv[1])
engine = open_engine("native", bundle, 1)
rows = verify_vectors(engine, bundle, 60)
assert rows and not failures(rows)
vectors = bundle.vectors()
for batch in (1, 5, 8, 19):
    binding = engine.bind(batch)
    for t, label in enumerate(("1", "2", "16")):
        for name, values in vectors.inputs.items():
            binding.inputs[name][...] = values[t, np.arange(batch) % vectors.batch]
        binding.run(label)
        binding.swap()
        assert np.isfinite(binding.arena).all()
engine.close()
print("clean")
"""


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which a process loads a library with sanitizers."""
    try:
        compiler = find_compiler()
    except CompatError as error:
        pytest.skip(str(error))
    found = [_runtime(compiler, name) for name in ("libasan.so", "libubsan.so")]
    if None in found:
        pytest.skip("the compiler brings no sanitizers")
    library = build(tmp_path_factory.mktemp("sanitized"), SANITIZE)
    preload = " ".join(str(path) for path in found)
    # Python itself never frees all that it has, and libraries of other packages are not what is tested.
    options = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
    return {**os.environ, **options, "LD_PRELOAD": preload, LIBRARY_VARIABLE: str(library)}


def _runtime(compiler: str, name: str) -> Path | None:
    done = subprocess.run([compiler, f"-print-file-name={name}"], check=True, capture_output=True, text=True)
    path = Path(done.stdout.strip())
    return path.resolve() if path.is_absolute() else None


@pytest.mark.slow
@pytest.mark.parametrize("instruction_set", ["x86_64_v3", "x86_64_v4"])
@pytest.mark.parametrize("task", list(CONFIGS))
def test_a_replay_is_clean(task: Task, instruction_set: str, exported: Exported, sanitized: dict[str, str]) -> None:
    _, bundle = exported(task)
    environment = {**sanitized, "ODESTREAM_ISA": instruction_set}
    command = [sys.executable, "-c", REPLAY, str(bundle.path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (0, "clean\n"), done.stderr[-3000:]


@pytest.mark.slow
def test_the_sanitizers_are_awake(sanitized: dict[str, str], exported: Exported) -> None:
    """Scratch that is too small must end the process."""
    _, bundle = exported("forecast")
    code = REPLAY.replace("import sys\n", "import sys\nfrom odestream.runtime.backends import native\n", 1).replace(
        "engine = ",
        "plain = native.aligned\n"
        "native.aligned = lambda shape, kind: plain((64,) if kind is np.uint8 else shape, kind)\nengine = ",
        1,
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(bundle.path)], check=False, capture_output=True, text=True, env=sanitized
    )
    assert done.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr
