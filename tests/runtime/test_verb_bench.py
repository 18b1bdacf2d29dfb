"""`odestream bench`: its statistics against known times, its pacing against the clock, its files."""

from __future__ import annotations

import json
import re
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from odestream.runtime.backends import BACKENDS
from odestream.runtime.backends.onnxruntime import OnnxEngine
from odestream.runtime.bundle import Bundle
from odestream.runtime.cli import main
from odestream.runtime.contract.manifest import TimeSpec
from odestream.runtime.contract.tolerances import TOLERANCES, tolerances
from odestream.runtime.verbs.console import engine_versions
from odestream.runtime.verbs.latency import ROUNDS, Measured, Subject, measure, median_ratio, summary
from tests.helpers.tiny_bundle import Tiny, write_tiny

LEAST_CALLS = {"p50_us": 2, "p90_us": 10, "p99_us": 100, "p99.9_us": 1000}
SIZES = ((1, 1), (1, 3), (4, 1))  # solver steps and batch of the bare engine, for buckets 1 and 4, batches 1 and 3


class SlowEngine(OnnxEngine):
    """ONNX Runtime, each call a millisecond longer."""

    name = "slow"

    def session(self, label: str) -> Any:
        session = super().session(label)
        return SimpleNamespace(io_binding=session.io_binding, run_with_iobinding=partial(_late, session))


def _late(session: Any, io: Any) -> None:
    time.sleep(0.001)
    session.run_with_iobinding(io)


def open_engine(bundle: Bundle, threads: int) -> SlowEngine:
    """What makes this module a backend."""
    return SlowEngine(onnxruntime, bundle, threads)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("bench") / "bundle")


def subject(rate: float | None = None, seconds: float = 0.0) -> Subject:
    return Subject("sleep", 4, rate, lambda _: None, lambda: time.sleep(seconds))


def test_summary_of_known_times() -> None:
    rounds = tuple(np.arange(1, 1001) * 1000 + 1000 * i for i in range(2))  # 1 … 1000 µs and 2 … 1001 µs
    figures = summary(Measured(subject(), rounds, 0))
    assert figures["calls"] == 2000
    assert figures["mean_us"] == pytest.approx(501.0, abs=0.01)
    assert figures["p50_us"] == pytest.approx(501.0, abs=0.51)
    assert figures["p99_us"] == pytest.approx(991.0, abs=1.0)
    assert figures["max_us"] == 1001.0
    assert figures["jitter_us"] == pytest.approx(288.68, abs=0.1)
    assert figures["p50_spread_us"] == [500.5, 501.5]
    assert figures["rows_per_second"] == pytest.approx(4 / 501.0e-6, rel=1e-3)
    assert figures["deadline_misses"] is None


def test_a_percentile_beyond_which_there_is_no_call_is_left_out() -> None:
    for key, least in LEAST_CALLS.items():
        for count in (least - 1, least):
            assert (summary(Measured(subject(), (np.arange(1, count + 1),), 0))[key] is None) == (count < least)


def test_ratio_is_the_median_of_the_rounds_own_ratios() -> None:
    """One round was disturbed: neither it nor the ratio of all medians (4.5) is what is told."""
    first = [np.array([10, 20, 30]), np.array([100, 200, 300]), np.array([20, 20, 20])]
    other = [np.array([50, 60, 90]), np.array([600, 600, 600]), np.array([90, 90, 90])]
    assert median_ratio(*(Measured(subject(), tuple(rounds), 0) for rounds in (other, first))) == 3.0


def test_paced_calls_keep_their_rate_and_meet_their_deadlines() -> None:
    begin = time.perf_counter()
    (measured,) = measure([subject(rate=50.0)], 0.5, lambda _: None)
    assert time.perf_counter() - begin >= 0.4
    assert 15 <= len(measured.times) <= 30  # 25 releases; a busy machine may skip some
    assert len(measured.rounds) == ROUNDS
    assert summary(measured)["rows_per_second"] is None


def test_call_longer_than_its_period_misses_every_deadline() -> None:
    (measured,) = measure([subject(rate=1000.0, seconds=0.01)], 0.1, lambda _: None)
    assert measured.missed == len(measured.times) > 0


def test_every_subject_is_measured_in_every_round() -> None:
    seen: list[float] = []
    results = measure([subject(), subject(rate=1000.0)], 0.05, seen.append)
    assert all(len(times) > 0 for measured in results for times in measured.rounds)
    assert sum(seen) == pytest.approx(0.1)


@pytest.mark.parametrize("tiny", [Tiny(), Tiny(tokens=True), Tiny(buckets=(), mask=False, dt=False, frequencies=())])
def test_bench_writes_figures_of_step_and_engine(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_tiny(tmp_path / "bundle", tiny)
    options = ["--batch", "1,3", "--seconds", "0.05", "--rate", "200", "--json", str(tmp_path / "bench.json")]
    assert main(["bench", str(bundle), *options]) == 0
    report = json.loads((tmp_path / "bench.json").read_text())
    found = [(row["name"], row["steps"], row["batch"], row["mode"]) for row in report["measurements"]]
    usual = 1 if tiny.buckets else None
    assert found == [
        ("Stream.step", None, 1, "back-to-back"),
        ("Stream.step", None, 1, "paced"),
        ("engine", usual, 1, "back-to-back"),
        ("engine", usual, 3, "back-to-back"),
        *(("engine", steps, 1, "back-to-back") for steps in tiny.buckets[1:]),
    ]
    for row in report["measurements"]:
        told = [row[key] for key, least in LEAST_CALLS.items() if row["calls"] >= least]
        assert 0 < told[0] <= row["max_us"]
        assert told == sorted(told)
        assert all(row[key] is None for key, least in LEAST_CALLS.items() if row["calls"] < least)
    assert report["versions"]["onnxruntime"]
    assert report["threads"] == 1
    assert "Stream.step" in capsys.readouterr().out


def test_kernels_of_our_own_have_the_version_of_this_package(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"odestream": "0.1.0", "numpy": "2.0", "onnxruntime-gpu": "1.20", "tensorrt-rtx-cu13-bindings": "1.7"}
    monkeypatch.setattr("odestream.runtime.verbs.console._version", installed.get)
    found = {"native": "0.1.0", "native-cuda": "0.1.0", "onnxruntime": "1.20", "tensorrt": "1.7", "unheard": None}
    assert engine_versions(*found) == {"odestream": "0.1.0", "numpy": "2.0", **found}


def test_bench_tells_what_the_solver_of_its_streams_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At this scale the usual gap needs 8 steps: whatever begins with fewer is run again."""
    bundle = write_tiny(tmp_path / "bundle", Tiny(buckets=(1, 8), err_scale=500.0))
    options = ["--batch", "2", "--seconds", "0.05", "--json", str(tmp_path / "bench.json"), "--force"]
    assert main(["bench", str(bundle), *options]) == 0
    step, paced, *engine = json.loads((tmp_path / "bench.json").read_text())["measurements"]
    for figures in (step, paced):
        solver = figures["solver"]
        assert solver["steps"] == sum(solver["buckets"].values()) > figures["calls"] > 0
        assert solver["buckets"]["8"] > 0
        assert solver["rerun"] == solver["rejected"]["1"] > 0
    assert [(row["steps"], row["batch"]) for row in engine] == [(1, 2), (8, 1)]
    assert not any("solver" in row for row in engine)
    out = capsys.readouterr().out
    assert re.search(
        r"Stream.step, back-to-back: [\d,]+ rows, \d+ run again .*; calls by solver steps: 1: .*, 8: ", out
    )
    assert "engine, 8 steps" in out


def test_bench_of_limited_buckets_measures_these_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = write_tiny(tmp_path / "bundle", Tiny(buckets=(1, 4, 8)))
    options = ["--batch", "1", "--seconds", "0.02", "--json", str(tmp_path / "bench.json"), "--buckets"]
    assert main(["bench", str(bundle), *options, "4,8"]) == 0
    step, _, *engine = json.loads((tmp_path / "bench.json").read_text())["measurements"]
    assert [row["steps"] for row in engine] == [4, 8]
    assert step["solver"]["buckets"]["1"] == 0
    for wrong in ("2", "8,4", "x"):
        assert main(["bench", str(bundle), *options, wrong, "--force"]) == 2
        assert "; " in capsys.readouterr().err


def test_compare_measures_each_subject_on_each_backend_in_every_round(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second backend is ONNX Runtime again, held up for a millisecond a call: its ratio has to show that."""
    monkeypatch.setattr("odestream.runtime.backends.BACKENDS", {**BACKENDS, "slow": __name__})
    tolerance = {("fp32", "slow"): tolerances("fp32", "onnxruntime")}
    monkeypatch.setattr("odestream.runtime.contract.tolerances.TOLERANCES", tolerance | dict(TOLERANCES))
    bundle = write_tiny(tmp_path / "bundle", Tiny(buckets=(1, 4)))
    options = ["--batch", "1,3", "--seconds", "0.1", "--json", str(tmp_path / "bench.json")]
    assert main(["bench", str(bundle), *options, "--compare", "onnxruntime,slow"]) == 0
    report = json.loads((tmp_path / "bench.json").read_text())
    assert report["backend"] == "onnxruntime, slow"
    found = [(row["backend"], row["steps"], row["batch"], row["mode"]) for row in report["measurements"]]
    subjects = [(None, 1, "back-to-back"), (None, 1, "paced"), *((s, b, "back-to-back") for s, b in SIZES)]
    assert found == [(backend, *subject) for subject in subjects for backend in ("onnxruntime", "slow")]
    first, second = report["measurements"][::2], report["measurements"][1::2]
    assert {row["p50_ratio"] for row in first} == {1.0}
    for fast, slow in zip(first, second, strict=True):
        assert slow["p50_us"] > 1000.0
        # The middle of the rounds' ratios lies between those of their extremes, whatever else the machine does.
        (low, high), (least, most) = fast["p50_spread_us"], slow["p50_spread_us"]
        assert 0.999 * least / high <= slow["p50_ratio"] <= 1.001 * most / low
    assert ("solver" in first[0], "solver" in second[1], "solver" in second[2]) == (True, True, False)
    assert "× first" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--compare", "onnxruntime"], "expected two backends or more"),
        (["--compare", "onnxruntime,onnxruntime"], "expected two backends or more"),
        (["--compare", "onnxruntime,native", "--backend", "native"], "exclude each other"),
        (["--compare", "onnxruntime,unheard"], "unknown backend 'unheard'"),
        (["--compare", "onnxruntime,native"], "python -m odestream.runtime.kernels.build"),
    ],
)
def test_backends_that_cannot_be_compared_here_are_refused(
    options: list[str],
    message: str,
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("ODESTREAM_NATIVE_LIBRARY", raising=False)
    monkeypatch.setattr("odestream.runtime.kernels.library.find_library", lambda: None)
    out = tmp_path / "bench.json"
    assert main(["bench", str(bundle), *options, "--json", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_plot_is_an_image_that_appears_whole(bundle: Path, tmp_path: Path) -> None:
    options = ["--seconds", "0.05", "--batch", "1", "--plot", str(tmp_path / "latency.png")]
    assert main(["bench", str(bundle), *options]) == 0
    assert (tmp_path / "latency.png").read_bytes().startswith(b"\x89PNG")
    assert main(["bench", str(bundle), *options]) == 2


def test_plot_without_matplotlib_names_the_extra_before_measuring(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["bench", str(bundle), "--plot", str(tmp_path / "latency.png")]) == 2
    assert capsys.readouterr().err.endswith("; pip install 'odestream[bench]'\n")


@pytest.mark.parametrize("batch", ["", "0", "1,x", "-1"])
def test_batch_that_is_no_number_is_refused(batch: str, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(bundle), f"--batch={batch}"]) == 2
    assert "expected whole numbers from 1; write them as 1,8,64" in capsys.readouterr().err


def test_steps_so_long_that_the_clock_ends_begin_a_new_stream(tmp_path: Path) -> None:
    slow = TimeSpec(frequencies=(), ticks_per_model_unit=2e18, tick_seconds=1e-9)
    path = write_tiny(tmp_path / "bundle", Tiny(time=slow))
    assert main(["bench", str(path), "--seconds", "0.1", "--batch", "1", "--json", str(tmp_path / "bench.json")]) == 0
    figures = json.loads((tmp_path / "bench.json").read_text())["measurements"][0]
    assert figures["calls"] * 2e17 > 2**63  # the clock's end was passed
    assert figures["solver"]["steps"] > figures["calls"], "warm-up and every stream are counted"
