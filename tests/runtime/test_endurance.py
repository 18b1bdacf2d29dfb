"""Long runs and small figures: memory that does not grow, time that stays flat, a thin layer over the engine."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from odestream.runtime import Model, load
from tests.helpers.tiny_bundle import NANO_MEMBERS, Tiny, write_tiny

PAGE = 4096
MIB = 1 << 20
TICK = 10_000_000


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def nanoseconds(call: Callable[[], object]) -> int:
    start = time.perf_counter_ns()
    call()
    return time.perf_counter_ns() - start


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model with a state as large and as divided as the nano preset's."""
    tiny = Tiny(channels=4, members=NANO_MEMBERS | {"h2": (64,)})
    return load(write_tiny(tmp_path_factory.mktemp("nano") / "b", tiny))


@pytest.mark.slow
def test_100_000_steps_grow_by_at_most_1_mib_and_stay_as_fast(nano: Model) -> None:
    stream, x = nano.stream(), np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
    t, medians, sizes = 0, [], []
    for _ in range(10):
        times = []
        for row in range(10_000):
            t += TICK
            times.append(nanoseconds(lambda row=row, t=t: stream.step(x[row % 100], t)))  # type: ignore[misc]
        medians.append(statistics.median(times))
        sizes.append(resident_bytes())
    assert stream.counters.steps == 100_000
    assert sizes[-1] - sizes[0] <= MIB
    assert statistics.median(medians[5:]) <= 1.15 * statistics.median(medians[:5])


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True])
def test_a_step_adds_at_most_15_microseconds_to_the_engine_s_call(nano: Model, masked: bool) -> None:
    """The same graph, bare and through the stream, one after the other; medians of 5,000 pairs."""
    stream, binding, label = nano.stream(), nano.bind(), nano.manifest.default_graph
    x, mask = np.zeros(4, np.float32), np.ones(4, np.float32) if masked else None
    bare, whole = [], []
    for row in range(6_000):
        bare.append(nanoseconds(lambda: binding.run(label)))
        whole.append(nanoseconds(lambda row=row: stream.step(x, row * TICK, mask)))  # type: ignore[misc]
    added = statistics.median(whole[1000:]) - statistics.median(bare[1000:])
    assert added <= 15_000
