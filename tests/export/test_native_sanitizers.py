"""The library under the address and undefined-behaviour sanitizers: steps, streams, batches, and damaged files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from odestream.models.config import Task
from odestream.runtime.kernels.build import build, find_compiler, json_flags
from odestream.runtime.kernels.library import LIBRARY_VARIABLE
from tests.export.conftest import CONFIGS, Exported
from tests.helpers.sanitizers import sanitized_environment

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


STREAMS = """
import sys
import numpy as np
from odestream.runtime import Batcher, OdestreamError, load
rng = np.random.default_rng(0)
model = load(sys.argv[1], "native")
streams, batcher = [model.stream() for _ in range(11)], Batcher(model)
tokens, width = model.manifest.task.kind == "tokens", model.manifest.spec.inputs[0].size
t = np.full(11, 17 * 10**17)
failed = 0
for i in range(120):
    t = t + np.exp(rng.normal(20, 3, 11)).astype(np.int64)
    x = rng.integers(0, 256, 11) if tokens else (rng.normal(size=(11, width)) * 100).astype(np.float32)
    mask = (rng.random((11, width)) > 0.3).astype(np.float32)
    if i % 10 == 9:
        mask[3], t[5] = 2, -(1 << 63)
        if not tokens:
            x[4, 0] = np.nan
    answers = batcher.step(streams, x, t, mask)
    failed += sum(isinstance(answer, OdestreamError) for answer in answers)
    t = np.array([stream.last_tick or 17 * 10**17 for stream in streams])
    for stream in streams:
        stream.predict(stream.last_tick + 10**9)
assert failed > 10
for stream in streams:
    twin = model.restore(stream.snapshot())
    assert twin.state()["h"].tobytes() == stream.state()["h"].tobytes()
print("clean")
"""

FILES = """
import hashlib
import sys
import tempfile
from pathlib import Path
import numpy as np
from odestream.runtime import load
from odestream.runtime.snapshot import MAGIC
from tests.helpers.clib import CModel, Refused
path, rng = Path(sys.argv[1]), np.random.default_rng(1)
text = (path / "manifest.json").read_bytes()
weights = (path / "weights.safetensors").read_bytes()

def damaged(data):
    data = bytearray(data)
    kind = rng.integers(4)
    for _ in range(rng.integers(1, 4)):
        place = int(rng.integers(len(data)))
        if kind == 0:
            data[place] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            data[place:place + int(rng.integers(1, 200))] = b""
        elif kind == 2:
            data[place:place] = rng.choice([b"9", b"-", b"[", b'{"', b"1e9", b"99999999999", b"null,", b"\\u0000"])
        else:
            other = int(rng.integers(len(data)))
            data[place:place + 20] = data[other:other + 20]
    return bytes(data[:int(rng.integers(len(data)))] if rng.random() < 0.1 else data)

refused = opened = 0
with tempfile.TemporaryDirectory() as folder:
    place = Path(folder)
    (place / "weights.safetensors").write_bytes(weights)
    for _ in range(4000):
        (place / "manifest.json").write_bytes(damaged(text))
        try:
            model = CModel(place)
        except Refused:
            refused += 1
            continue
        opened += 1
        model.library.odestream_stream_destroy(model.library.odestream_stream_create(model.pointer, None))
        model.close()
assert refused > 1000 and opened > 100, (refused, opened)
model = CModel(path)
with load(path, "native") as python:
    stream = python.stream()
    stream.step([350, -1], 10**9)
    stream.step([351, -1], 2 * 10**9)
    blob, manifest = stream.snapshot(), python.manifest
body, refused = blob[len(MAGIC) + 32:], 0
for _ in range(4000):
    bad = damaged(body)
    try:
        model.restore(MAGIC + hashlib.sha256(bad).digest() + bad, manifest).close()
    except Refused:
        refused += 1
assert refused > 1000
for size in range(0, len(blob), 7):
    try:
        model.restore(blob[:size], manifest)
    except Refused:
        refused += 1
model.close()
print("clean")
"""


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which a process loads a library with sanitizers."""
    environment = sanitized_environment("libasan.so", "libubsan.so")
    return {**environment, LIBRARY_VARIABLE: str(build(tmp_path_factory.mktemp("sanitized"), SANITIZE))}


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
@pytest.mark.parametrize("task", list(CONFIGS))
def test_streams_and_batches_are_clean(task: Task, exported: Exported, sanitized: dict[str, str]) -> None:
    command = [sys.executable, "-c", STREAMS, str(exported(task)[1].path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=sanitized)
    assert (done.returncode, done.stdout) == (0, "clean\n"), done.stderr[-3000:]


@pytest.mark.slow
def test_damaged_manifests_and_snapshots_are_refused_cleanly(exported: Exported, sanitized: dict[str, str]) -> None:
    if json_flags(find_compiler()) is None:
        pytest.skip("nlohmann/json is not installed, so the library opens no bundles")
    environment = {**sanitized, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", FILES, str(exported("forecast")[1].path)]
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
