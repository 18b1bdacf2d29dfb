"""Long runs and small figures: memory that does not grow, time that stays flat, a thin layer over the engine."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from odestream.runtime import Model, load
from odestream.runtime.contract.rule import Accepted, BucketRule
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
@pytest.mark.parametrize(
    ("seen", "most"), [(None, 15), ([1, 1, 1, 1], 15), ([1, 0, 1, 1], 20)], ids=["no mask", "all seen", "a hole"]
)
def test_a_step_adds_at_most_15_microseconds_to_the_engine_s_call(
    nano: Model, seen: list[int] | None, most: int
) -> None:
    """The same graph, bare and through the stream, one after the other; medians of 5,000 pairs. Holes take longer."""
    stream, binding, label = nano.stream(), nano.bind(), nano.manifest.default_graph
    x, mask = np.zeros(4, np.float32), None if seen is None else np.array(seen, np.float32)
    bare, whole = [], []
    for row in range(6_000):
        bare.append(nanoseconds(lambda: binding.run(label)))
        whole.append(nanoseconds(lambda row=row: stream.step(x, row * TICK, mask)))  # type: ignore[misc]
    added = statistics.median(whole[1000:]) - statistics.median(bare[1000:])
    assert added <= 1000 * most


@pytest.mark.slow
@pytest.mark.parametrize("err", [0.3, 5.0], ids=["accepted", "run again"])
def test_choosing_a_bucket_and_judging_its_result_take_at_most_3_microseconds(err: float) -> None:
    """Both together, the call of a Python function included; the median of 1,000 rounds of 100."""
    rule = BucketRule((1, 2, 4, 8, 16), 4, 0.5, 2, (1e8, 2e8, 4e8, 8e8, 16e8))
    previous = Accepted(TICK, 2, 0.25)

    def rounds() -> None:
        for gap in range(TICK, TICK + 100):
            rule.judge(err, rule.choose(gap, previous, 0), 0, 0)

    rounds()
    assert statistics.median(nanoseconds(rounds) for _ in range(1000)) / 100 <= 3_000
