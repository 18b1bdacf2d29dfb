"""Telemetry for Prometheus: as text, and served over HTTP; with the extra `metrics`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from odestream.runtime.errors import CompatError
from odestream.runtime.telemetry import BOUNDS, Telemetry

LOOPBACK = "127.0.0.1"
_PREFIX = "odestream"


class Collector:
    """Gives a Telemetry's counts to prometheus-client, as they are at each scrape."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    def collect(self) -> Iterator[Any]:
        """The metric families."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        counts = self._telemetry
        for name, value, about in (
            ("calls", counts.calls, "Calls of the fleet."),
            ("rows", counts.rows, "Rows handed in."),
            ("flagged", counts.flagged, "Rows whose solver error is above the safety factor."),
            ("reruns", counts.reruns, "Engine calls that were rejected and run again."),
            ("split", counts.split, "Rows whose gap took several calls."),
            ("other_stream_rows", counts.others, "Rows answered of streams beyond those that are counted by name."),
            ("deadline_misses", counts.missed, "Calls that took longer than the deadline."),
            ("unlogged_calls", counts.unlogged, "Calls that were answered and that the log lacks."),
        ):
            yield CounterMetricFamily(f"{_PREFIX}_{name}", about, value=value)
        for name, label, values, about in (
            ("refused", "error", counts.refused, "Rows refused, by error."),
            ("bucket_rows", "steps", counts.buckets, "Rows answered, by solver steps."),
            ("stream_rows", "stream", counts.streams, "Rows answered, by stream."),
        ):
            family = CounterMetricFamily(f"{_PREFIX}_{name}", about, labels=[label])
            for key, count in dict(values).items():
                family.add_metric([str(key)], count)
            yield family
        yield GaugeMetricFamily(
            f"{_PREFIX}_streams", "Streams that had a row and are counted by name.", value=len(counts.streams)
        )
        yield HistogramMetricFamily(
            f"{_PREFIX}_call_seconds", "Time of a call.", buckets=_cumulative(counts), sum_value=counts.seconds
        )


def prometheus_text(telemetry: Telemetry) -> str:
    """The counts in Prometheus's text format; CompatError where prometheus-client is not installed."""
    client, registry = _registry(telemetry)
    text: bytes = client.generate_latest(registry)
    return text.decode()


def serve(telemetry: Telemetry, port: int, host: str = LOOPBACK) -> Callable[[], None]:
    """Serve the counts at `http://HOST:PORT/metrics` from a thread; what is returned ends it.

    CompatError where prometheus-client is not installed, OSError where the port cannot be had.
    """
    client, registry = _registry(telemetry)
    server, thread = client.start_http_server(port, addr=host, registry=registry)

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return stop


def _registry(telemetry: Telemetry) -> tuple[Any, Any]:
    try:
        import prometheus_client
    except ImportError as cause:
        raise CompatError(
            f"prometheus-client is not installed ({cause}); run: pip install 'odestream[metrics]'"
        ) from cause
    registry = prometheus_client.CollectorRegistry()
    registry.register(Collector(telemetry))
    return prometheus_client, registry


def _cumulative(telemetry: Telemetry) -> list[tuple[str, float]]:
    total, buckets = 0, []
    for bound, count in zip((*map(str, BOUNDS), "+Inf"), list(telemetry.latencies), strict=True):
        total += count
        buckets.append((bound, float(total)))
    return buckets
