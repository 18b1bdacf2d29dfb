"""Counts of a fleet: as numbers, and as a scraper of Prometheus reads them."""

import socket
import sys
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from odestream.runtime import CompatError, InputError, Model, load
from odestream.runtime.fleet import Fleet, Observation
from odestream.runtime.metrics import prometheus_text, serve
from odestream.runtime.telemetry import BOUNDS, Telemetry
from tests.helpers.adaptive import ADAPTIVE, BURST, QUIET
from tests.helpers.streams import SECOND
from tests.helpers.tiny_bundle import write_tiny


@pytest.fixture
def busy(model: Model) -> Telemetry:
    """Counts of a fleet that had five rows, of which one was refused."""
    fleet = Fleet(model, telemetry=Telemetry(deadline=100.0))
    for t in (0, SECOND):
        fleet.step([Observation(name, [1, 2, 3], t) for name in ("pump 1", 'quo"te')])
    fleet.step([Observation("pump 1", [1, 2, 3], 0)])
    return fleet.telemetry


def samples(text: str) -> dict[tuple[str, str], float]:
    """(name, label) → value."""
    families = text_string_to_metric_families(text)
    return {(s.name, "".join(s.labels.values())): s.value for family in families for s in family.samples}


def test_prometheus_reads_what_the_fleet_did(busy: Telemetry) -> None:
    busy.unlogged = 2
    found = samples(prometheus_text(busy))
    assert found["odestream_rows_total", ""] == 5
    assert found["odestream_calls_total", ""] == 3
    assert found["odestream_stream_rows_total", "pump 1"] == 2
    assert found["odestream_stream_rows_total", 'quo"te'] == 2
    assert found["odestream_refused_total", "TimeError"] == 1
    assert found["odestream_bucket_rows_total", "1"] == 4
    assert found["odestream_deadline_misses_total", ""] == 0
    assert found["odestream_unlogged_calls_total", ""] == 2
    assert found["odestream_streams", ""] == 2
    assert found["odestream_call_seconds_bucket", "+Inf"] == found["odestream_call_seconds_count", ""] == 3
    assert found["odestream_call_seconds_sum", ""] == pytest.approx(busy.seconds)
    counts = [found["odestream_call_seconds_bucket", str(bound)] for bound in BOUNDS]
    assert counts == sorted(counts)


def test_reruns_splits_and_flags_are_counted_as_the_streams_count_them(tmp_path: Path) -> None:
    with load(write_tiny(tmp_path / "b", ADAPTIVE)) as model:
        fleet = Fleet(model)
        for t, size in enumerate([QUIET] * 5 + [BURST, QUIET, 1e8, QUIET, QUIET]):
            fleet.step([Observation("a", [size, 1, 1], t * SECOND // 2)])
        counters, telemetry = fleet.states()["a"].counters, fleet.telemetry
        assert (telemetry.flagged, telemetry.split) == (counters.flagged, counters.split)
        assert telemetry.reruns == sum(counters.rejected.values()) > 0
        assert sum(telemetry.buckets.values()) == counters.steps


def test_streams_beyond_the_first_are_counted_together(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("odestream.runtime.telemetry.MOST_STREAMS", 3)
    fleet = Fleet(model)
    for t in (0, SECOND):
        fleet.step([Observation(f"s{i}", [1, 2, 3], t) for i in range(5)])
    assert fleet.telemetry.streams == {"s0": 2, "s1": 2, "s2": 2}
    assert fleet.telemetry.others == 4
    found = samples(prometheus_text(fleet.telemetry))
    assert found["odestream_other_stream_rows_total", ""] == 4
    assert found["odestream_streams", ""] == 3
    assert fleet.telemetry.as_dict()["others"] == 4


def test_counts_are_served_on_the_loopback_address(busy: Telemetry) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    stop = serve(busy, port)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            assert samples(answer.read().decode())["odestream_rows_total", ""] == 5
    finally:
        stop()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10)


def test_without_prometheus_client_the_extra_is_named(busy: Telemetry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(CompatError, match=r"pip install 'odestream\[metrics\]'"):
        prometheus_text(busy)


def test_quantiles_are_upper_bounds_of_what_was_measured() -> None:
    telemetry = Telemetry()
    assert telemetry.quantile(0.5) == 0
    for seconds in [15e-6] * 98 + [3e-3, 9.0]:
        telemetry.count(seconds, [], [])
    assert [telemetry.quantile(q) for q in (0.5, 0.98, 0.99, 1.0)] == [20e-6, 20e-6, 5e-3, float("inf")]
    assert telemetry.as_dict()["p99.9"] is None
    with pytest.raises(InputError, match="deadline is -1 s"):
        Telemetry(-1)
