"""native-cuda on a real GPU: `make test-gpu`, or `pytest -m gpu`."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from odestream.export import verify_bundle
from odestream.models.config import PRESETS, Task
from odestream.runtime import CompatError, Model, Output, load
from odestream.runtime.arena import Layout
from odestream.runtime.backends.native_cuda import NativeCudaBinding, open_engine
from odestream.runtime.bundle import Bundle
from odestream.runtime.fleet import Fleet, Observation
from odestream.runtime.kernels.build_cuda import build_cuda, find_cuda_library, has_gpu
from odestream.runtime.kernels.cuda_library import find_gpu, load_cuda_library
from odestream.runtime.replay import failures
from odestream.runtime.telemetry import Telemetry
from tests.export.conftest import CONFIGS, Exported
from tests.helpers.native import differences, memory_bundle
from tests.helpers.problems import tiny_config
from tests.helpers.sequences import random_cell, random_inputs
from tests.helpers.streams import SECOND, same
from tests.helpers.tools import require

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("gpu")]

SANITIZED = """
import sys
import numpy as np
from odestream.runtime.backends import open_engine
from odestream.runtime.bundle import read_bundle
bundle = read_bundle(sys.argv[1])
engine = open_engine("native-cuda", bundle, 1)
vectors = bundle.vectors()
for batch in (1, 3, 700):
    binding = engine.bind(batch)
    for t, label in enumerate(("1", "2")):
        for name, values in vectors.inputs.items():
            binding.inputs[name][...] = values[t, np.arange(batch) % vectors.batch]
        binding.run(label)
        binding.swap()
        assert binding.finite()
"""


@pytest.fixture(scope="module")
def gpu() -> None:
    """A GPU and the library, built if it is not there; skipped, with the reason, where either is not to be had."""
    if not has_gpu():
        pytest.skip("no NVIDIA GPU is here: its driver has no device files")
    try:
        if find_cuda_library() is None:
            build_cuda()
        find_gpu(load_cuda_library())
    except CompatError as error:
        pytest.skip(str(error))


def bind(bundle: Bundle, batch: int) -> NativeCudaBinding:
    binding = open_engine(bundle).bind(batch)
    assert isinstance(binding, NativeCudaBinding)
    return binding


@pytest.mark.parametrize("task", list(CONFIGS))
def test_a_thousand_chained_steps_in_every_bucket_stay_at_the_torch_step(task: Task, exported: Exported) -> None:
    cell, bundle = exported(task)
    rows = verify_bundle(bundle.path, cell, steps=1000, backend="native-cuda")
    assert ("chained", 1000) in {(row.check, row.steps) for row in rows}
    assert not failures(list(rows))


@pytest.mark.parametrize("batch", [1, 3, 64, 1021])
@pytest.mark.parametrize("preset", list(PRESETS))
def test_presets_agree_in_every_batch(preset: str, batch: int) -> None:
    cell = random_cell(tiny_config(sizes=PRESETS[preset]))
    inputs = random_inputs(cell.config, 3, batch)
    found = differences(cell, bind(memory_bundle(cell, (2,)), batch), inputs, "2", backend="native-cuda")
    assert max(found.values()) <= 1.0, found


@pytest.mark.parametrize(("dtype", "kind"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
@pytest.mark.parametrize("batch", [1, 1021])
def test_half_weights_give_what_torch_gives_with_matrices_rounded_so(dtype: str, kind: torch.dtype, batch: int) -> None:
    cell = random_cell(tiny_config("classify", sizes=PRESETS["nano"]))
    bundle = memory_bundle(cell, (4,))
    half = Bundle(bundle.path, msgspec.structs.replace(bundle.manifest, dtype=dtype), {}, bundle.weights)
    with torch.no_grad():
        for weight in cell.parameters():
            if weight.dim() == 2:
                weight.copy_(weight.to(kind))
    inputs = random_inputs(cell.config, 3, batch)
    found = differences(cell, bind(half, batch), inputs, "4", backend="native-cuda")
    assert max(found.values()) <= 1.0, found


@pytest.mark.parametrize("preset", ["nano", "base"])
def test_a_batch_equals_its_rows_alone_bit_for_bit(preset: str) -> None:
    cell, batch = random_cell(tiny_config(sizes=PRESETS[preset])), 1021
    bundle, inputs = memory_bundle(cell, (4,)), random_inputs(cell.config, 3, batch)
    together, layout = bind(bundle, batch), Layout(cell.spec().state, batch)
    single = Layout(cell.spec().state, 1)
    chosen = {r: bind(bundle, 1) for r in (0, 1, 2, 3, 510, 1020)}
    for t in range(3):
        for r, binding in [(slice(None), together), *((slice(r, r + 1), b) for r, b in chosen.items())]:
            for name, values in inputs.items():
                binding.inputs[name][...] = values[t, r].numpy()
            binding.run("4")
            binding.swap()
    state = layout.views(together.arena)
    for r, binding in chosen.items():
        own = single.views(binding.arena)
        assert {n: v[r].tobytes() for n, v in state.items()} == {n: v[0].tobytes() for n, v in own.items()}
        assert np.array_equal(together.outputs["y"][r], binding.outputs["y"][0])


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck", "initcheck"])
@pytest.mark.parametrize("task", list(CONFIGS))
def test_compute_sanitizer_finds_nothing(task: Task, tool: str, exported: Exported) -> None:
    sanitizer, path = require("compute-sanitizer"), exported(task)[1].path
    command = [sanitizer, "--tool", tool, "--error-exitcode", "9", sys.executable, "-c", SANITIZED, str(path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=dict(os.environ), cwd=Path.cwd())
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def test_case_74_a_device_that_is_slowed_down_gives_the_same_bytes_and_its_misses_are_counted(
    exported: Exported,
) -> None:
    """A throttled clock and another caller's large batches do the same to a step: it comes late, but is no other."""
    _, bundle = exported("forecast")
    with load(bundle.path, backend="native-cuda") as model:
        stepped(model, Telemetry())
        quiet = Telemetry()
        expected = stepped(model, quiet)
        slowed = Telemetry(deadline=2 * quiet.seconds / quiet.calls)
        with large_batches(bundle):
            found = stepped(model, slowed)
    assert len(found) == 200
    assert all(same(a, b) for a, b in zip(found, expected, strict=True))
    assert slowed.missed > 0
    assert slowed.seconds > quiet.seconds


def stepped(model: Model, telemetry: Telemetry) -> list[Output]:
    """The answers of a new stream to the stored inputs, over and over."""
    fleet, x = Fleet(model, telemetry=telemetry), model.bundle.vectors().inputs["x"][:, 0]
    calls = ([Observation("a", x[i % len(x)], i * SECOND)] for i in range(200))
    answers = [answer for rows in calls for answer in fleet.step(rows)]
    return [answer for answer in answers if isinstance(answer, Output)]


@contextmanager
def large_batches(bundle: Bundle, batch: int = 16_384) -> Iterator[None]:
    """The device is kept busy meanwhile."""
    binding, enough = bind(bundle, batch), threading.Event()
    label = list(bundle.manifest.graphs)[-1]

    def run() -> None:
        while not enough.is_set():
            binding.run(label)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        enough.set()
        thread.join()
