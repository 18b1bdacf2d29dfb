"""How long does a step take on this GPU, and what would a user otherwise ship?

One random cell of a preset, exported, runs at several batches: our kernels (native-cuda), `torch.compile` with CUDA
graphs, and ONNX Runtime's CUDA provider where it is installed. Each is first compared with torch in float32 on the same
inputs, then timed by CUDA events around many runs: microseconds of the device for one step.

    python benchmarks/gpu.py --preset nano --batches 1,64,1024

Prints one table; `--json FILE` writes it down. Exit status 2 where there is no GPU. A subject is one entry of SUBJECTS.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from odestream.export import export_bundle
from odestream.models.cell import Cell
from odestream.models.config import PRESETS, CellConfig, preset
from odestream.runtime.backends.native_cuda import NativeCudaBinding
from odestream.runtime.backends.native_cuda import open_engine as open_native_cuda
from odestream.runtime.bundle import Bundle, read_bundle
from odestream.runtime.contract.manifest import TimeSpec
from odestream.runtime.errors import CompatError
from odestream.runtime.kernels.cuda_library import find_gpu, load_cuda_library
from results import markdown_table, write_json

Inputs = Mapping[str, NDArray[Any]]
AGREES = 1e-4  # of the largest |y|, before anything is timed


@dataclass(frozen=True)
class Subject:
    """What is timed. y [B, …]: its answer. run(n): n runs one after another. own_time(n): µs a run, if it can tell."""

    y: NDArray[np.float32]
    run: Callable[[int], None]
    own_time: Callable[[int], float] | None = None


@dataclass(frozen=True)
class Timed:
    """One cell of the table; microseconds is None where the subject does not run here, and why says so."""

    subject: str
    batch: int
    microseconds: float | None
    why: str = ""


def native_cuda(cell: Cell, bundle: Bundle, steps: int, inputs: Inputs, batch: int) -> Subject:
    """Our kernels; copies of inputs and outputs are part of the graph and of the time."""
    binding = open_native_cuda(bundle).bind(batch)
    if not isinstance(binding, NativeCudaBinding):
        raise TypeError(f"expected a NativeCudaBinding, got {type(binding).__name__}")
    for name, values in inputs.items():
        binding.inputs[name][...] = values
    binding.run(str(steps))

    def run(count: int) -> None:
        for _ in range(count):
            binding.run(str(steps))

    return Subject(binding.outputs["y"].copy(), run, lambda count: binding.device_microseconds(str(steps), count))


def torch_compiled(cell: Cell, bundle: Bundle, steps: int, inputs: Inputs, batch: int) -> Subject:
    """torch.compile in mode "reduce-overhead", which captures CUDA graphs."""
    on_gpu, given = cell.cuda(), {name: torch.from_numpy(values).cuda() for name, values in inputs.items()}
    state = on_gpu.initial_state(batch)
    step = torch.compile(on_gpu.step, mode="reduce-overhead", fullgraph=True)
    with torch.no_grad():
        for _ in range(5):
            outputs, _ = step(given, state)
    y = outputs["y"].cpu().numpy()

    def run(count: int) -> None:
        with torch.no_grad():
            for _ in range(count):
                step(given, state)

    return Subject(y, run)


def onnxruntime_cuda(cell: Cell, bundle: Bundle, steps: int, inputs: Inputs, batch: int) -> Subject:
    """ONNX Runtime with everything bound on the device, and its CUDA graph."""
    import onnxruntime as ort

    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise CompatError("onnxruntime has no CUDA provider here; install 'odestream[gpu]'")
    path = bundle.path / bundle.manifest.graphs[str(steps)]
    options = {"enable_cuda_graph": "1", "use_tf32": "0"}
    session = ort.InferenceSession(str(path), providers=[("CUDAExecutionProvider", options)])
    state = {
        f"state_in_{m.name}": np.tile(m.initial_row(), (batch, *[1] * len(m.shape))) for m in bundle.manifest.spec.state
    }
    io = session.io_binding()
    held = {
        n: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(v), "cuda", 0) for n, v in {**inputs, **state}.items()
    }
    for name, value in held.items():
        io.bind_ortvalue_input(name, value)
    widths = {t.name: t.shape for t in bundle.manifest.spec.outputs} | {
        f"state_out_{m.name}": m.shape for m in bundle.manifest.spec.state
    }
    results = {
        name: ort.OrtValue.ortvalue_from_shape_and_type((batch, *shape), np.float32, "cuda", 0)
        for name, shape in widths.items()
    }
    for name, value in results.items():
        io.bind_ortvalue_output(name, value)
    for _ in range(3):
        session.run_with_iobinding(io)

    def run(count: int) -> None:
        for _ in range(count):
            session.run_with_iobinding(io)

    return Subject(results["y"].numpy(), run)


SUBJECTS: dict[str, Callable[[Cell, Bundle, int, Inputs, int], Subject]] = {
    "native-cuda": native_cuda,
    "torch.compile, CUDA graphs": torch_compiled,
    "ONNX Runtime, CUDA graph": onnxruntime_cuda,
}


def main() -> None:
    """Export, compare, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="nano", choices=list(PRESETS))
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--steps", type=int, default=1, help="solver steps")
    parser.add_argument("--batches", default="1,64,1024")
    parser.add_argument("--repeats", type=int, default=500)
    parser.add_argument("--json", type=Path, help="write the table there too")
    options = parser.parse_args()
    try:
        gpu = find_gpu(load_cuda_library())
    except CompatError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    cell = random_cell(options.preset, options.channels)
    with tempfile.TemporaryDirectory() as folder:
        bundle = exported(cell, Path(folder) / "bundle", options.steps)
        batches = [int(text) for text in options.batches.split(",")]
        rows = [row for batch in batches for row in timed_at(cell, bundle, options.steps, batch, options.repeats)]
    print(f"{options.preset}, {options.steps} solver step(s), on {gpu.name} ({gpu.capability}, CUDA {gpu.driver})\n")
    print(table(rows, batches))
    if options.json:
        write_json(options.json, {"gpu": asdict(gpu), "preset": options.preset, "rows": [asdict(row) for row in rows]})


def random_cell(name: str, channels: int) -> Cell:
    """A cell of the preset; its time does not depend on its weights."""
    torch.manual_seed(0)
    ones = (1.0,) * channels
    return Cell(
        CellConfig(
            "forecast",
            channels,
            preset(name),
            scale=ones,
            centre=(0.0,) * channels,
            averages=(1.0, 10.0),
            frequencies=(0.5,),
        )
    ).eval()


def exported(cell: Cell, path: Path, steps: int) -> Bundle:
    """Its bundle with the one bucket that is timed."""
    time = TimeSpec(frequencies=cell.config.frequencies)
    export_bundle(cell, path, buckets=(steps,), time=time, allow_uncalibrated=True, verify_steps=50)
    return read_bundle(path)


def timed_at(cell: Cell, bundle: Bundle, steps: int, batch: int, repeats: int) -> list[Timed]:
    """Every subject at one batch, each compared with torch before."""
    inputs = make_inputs(cell.config, batch)
    with torch.no_grad():
        given = {name: torch.from_numpy(values) for name, values in inputs.items()}
        expected = cell.cpu().step(given, cell.initial_state(batch))[0]["y"].numpy()
    return [timed(name, cell, bundle, steps, inputs, batch, expected, repeats) for name in SUBJECTS]


def timed(
    name: str,
    cell: Cell,
    bundle: Bundle,
    steps: int,
    inputs: Inputs,
    batch: int,
    expected: NDArray[np.float32],
    repeats: int,
) -> Timed:
    """One subject's device time, or why there is none."""
    try:
        subject = SUBJECTS[name](cell, bundle, steps, inputs, batch)
    except (CompatError, ImportError) as error:
        return Timed(name, batch, None, str(error))
    off = float(np.abs(subject.y - expected).max() / np.abs(expected).max())
    if not off <= AGREES:
        return Timed(name, batch, None, f"its y is off by {off:.1e} of the largest")
    subject.run(20)
    return Timed(name, batch, subject.own_time(repeats) if subject.own_time else event_time(subject.run, repeats))


def event_time(run: Callable[[int], None], repeats: int) -> float:
    """Microseconds of the device for one run."""
    begin: Any
    end: Any
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    begin.record()
    run(repeats)
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) * 1000 / repeats


def make_inputs(config: CellConfig, batch: int) -> Inputs:
    """One observation of every channel after a gap of 0.3."""
    rng = np.random.default_rng(0)
    return {
        "x": rng.standard_normal((batch, config.channels)).astype(np.float32),
        "mask": np.ones((batch, config.channels), np.float32),
        "dt": np.full((batch, 1), 0.3, np.float32),
        "phase": np.tile(np.array([0.0, 1.0], np.float32), (batch, 1)),
    }


def table(rows: list[Timed], batches: list[int]) -> str:
    """Microseconds of the device by subject and batch, and below what did not run."""
    cells = {(row.subject, row.batch): row for row in rows}
    shown = [
        [name, *("—" if (us := cells[name, b].microseconds) is None else f"{us:,.1f}" for b in batches)]
        for name in SUBJECTS
    ]
    reasons = {f"{row.subject}: {row.why}" for row in rows if row.why}
    head = ["µs of the device a step", *(f"batch {batch}" for batch in batches)]
    return "\n".join([markdown_table(head, shown), *sorted(reasons)])


if __name__ == "__main__":
    main()
