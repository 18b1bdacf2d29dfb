"""Engines are built in processes of their own: side by side, as in this one."""

from __future__ import annotations

from pathlib import Path
from threading import Barrier

import pytest

from odestream.export.compile import profiles
from odestream.export.engine import Options, build_engine
from odestream.export.engine_worker import Job, make_job, start_workers
from odestream.runtime import CompatError
from odestream.runtime.backends.trt_package import load_package
from odestream.runtime.bundle import read_bundle
from tests.helpers.gru import Gru

MINUTE = 60


@pytest.fixture(scope="session", autouse=True)
def trt_rtx() -> None:
    """What the workers of this file build with."""
    pytest.importorskip("tensorrt_rtx_bindings", reason="pip install 'odestream[trt-rtx]'")


def job(bundle: Path, architecture: str = "sm89") -> Job:
    (label,) = read_bundle(bundle).manifest.graphs
    return make_job("trt-rtx", read_bundle(bundle), label, Options((architecture,), profiles([8])))


def test_two_engines_are_built_at_once_and_are_those_of_one_process(gru_bundle: tuple[Gru, Path]) -> None:
    bundle = read_bundle(gru_bundle[1])
    (label,) = bundle.manifest.graphs
    phases = [list[tuple[str, int]](), list[tuple[str, int]]()]
    both = Barrier(2, timeout=MINUTE)  # neither goes on before the other has begun

    def report(which: int, phase: str, done: int) -> None:
        if not phases[which]:
            both.wait()
        phases[which].append((phase, done))

    with start_workers(2) as workers:
        made = workers.map(
            lambda which: workers.build(job(gru_bundle[1]), lambda phase, done: report(which, phase, done)), (0, 1)
        )
    here: list[tuple[str, int]] = []
    options = Options(("sm89",), profiles([8]))
    expected, _ = build_engine(
        load_package("trt-rtx"), bundle, label, options, None, lambda phase, done: here.append((phase, done))
    )
    assert len(expected.data) > 100_000
    assert [(b.layers, b.calls, b.proof, len(b.data)) for b in made] == 2 * [
        (expected.layers, expected.calls, expected.proof, len(expected.data))
    ]
    assert phases == [here, here]


def test_a_typed_error_arrives_as_what_it_is_and_the_worker_goes_on(gru_bundle: tuple[Gru, Path]) -> None:
    with start_workers(1) as workers:
        with pytest.raises(CompatError, match=r"step.onnx: trt-rtx .* cannot build it \(.*Turing.*choose other --arch"):
            workers.build(job(gru_bundle[1], "sm75"), lambda *_: None)
        assert workers.build(job(gru_bundle[1]), lambda *_: None).data
