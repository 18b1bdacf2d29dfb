"""`odestream run` on what its solver did: limited buckets, the line on standard error, the report."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from odestream.runtime import Counters, load
from odestream.runtime.contract.manifest import TaskSpec, decode_manifest, encode_manifest
from tests.helpers.adaptive import ADAPTIVE, bursts
from tests.helpers.run_verb import ROWS, files_under, refusal, run, write_table
from tests.helpers.tiny_bundle import Tiny, write_tiny

COUNT = 120


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its table has a stream column."""
    path = write_tiny(tmp_path_factory.mktemp("solver") / "bundle", ADAPTIVE)
    task = TaskSpec("forecast", ("c0", "c1", "c2"), ("c1",), (), "time", "id")
    manifest = decode_manifest((path / "manifest.json").read_bytes(), "bundle")
    (path / "manifest.json").write_bytes(encode_manifest(msgspec.structs.replace(manifest, task=task)))
    return path


def observations() -> list[tuple[str, int, Any]]:
    """Stream, tick and values; two streams in turn, every value observed."""
    x, t, _ = bursts(COUNT)
    return [("ab"[i % 2], int(t[i] - t[0]), x[i]) for i in range(COUNT)]


def rows_text(part: slice = slice(None)) -> list[str]:
    lines = [
        f"{tick / 10**9:.9f},{name},{','.join(map(repr, map(float, x)))}" for name, tick, x in observations()[part]
    ]
    return ["time,id,c0,c1,c2", *lines]


def counted(bundle: Path, buckets: Any = None, part: slice = slice(None)) -> dict[str, Counters]:
    """What streams of the Python interface do with rows `part`, the rows before them being the past."""
    with load(bundle) as model:
        streams = {name: model.stream(buckets) for name in "ab"}
        past = {name: Counters() for name in "ab"}
        for i, (name, tick, x) in enumerate(observations()):
            if i == (part.start or 0):
                past = {name: stream.counters for name, stream in streams.items()}
            if i < (part.stop or COUNT):
                streams[name].step(x, tick)
    return {name: less(stream.counters, past[name]) for name, stream in streams.items()}


def less(now: Counters, past: Counters) -> Counters:
    histograms = (
        {n: k - getattr(past, name).get(n, 0) for n, k in getattr(now, name).items()}
        for name in ("buckets", "rejected")
    )
    return Counters(
        now.steps - past.steps, now.flagged - past.flagged, now.split - past.split, now.rerun - past.rerun, *histograms
    )


def test_one_line_on_standard_error_sums_up_and_standard_output_holds_the_rows_alone(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(bundle, write_table(tmp_path / "table.csv", rows_text())) == 0
    out, err = capsys.readouterr()
    a, b = counted(bundle).values()
    assert min(a.rerun + b.rerun, a.split + b.split, a.flagged + b.flagged) >= 2
    kept, rejected = (
        ", ".join(f"{n}: {getattr(a, kind)[n] + getattr(b, kind)[n]}" for n in "1248")
        for kind in ("buckets", "rejected")
    )
    share = f"{100 * (a.rerun + b.rerun) / COUNT:.3g}"
    assert err == (
        f"odestream: {COUNT} rows, {a.rerun + b.rerun} run again ({share} %), {a.split + b.split} split, "
        f"{a.flagged + b.flagged} flagged; calls by solver steps: {kept}; rejected: {rejected}"
        "; on onnxruntime\n"
    )
    rows = list(csv.DictReader(io.StringIO(out)))
    assert list(rows[0]) == ["time", "id", "c1", "c1_std", "err", "bucket", "flagged"]
    assert len(rows) == COUNT
    assert sum(int(row["flagged"]) for row in rows) == a.flagged + b.flagged


def test_the_report_holds_what_each_stream_s_counters_say(bundle: Path, tmp_path: Path) -> None:
    table, report = write_table(tmp_path / "table.csv", rows_text()), tmp_path / "report.json"
    assert run(bundle, table, "--output", tmp_path / "out.csv", "--report", report) == 0
    found, expected = json.loads(report.read_text()), counted(bundle)
    assert found["streams"] == msgspec.to_builtins(expected)
    assert found["total"]["steps"] == COUNT
    for kind in ("buckets", "rejected"):
        sums = {n: sum(getattr(c, kind)[n] for c in expected.values()) for n in ("1", "2", "4", "8")}
        assert found["total"][kind] == sums
    assert (found["bundle"], found["backend"]) == ("tiny", "onnxruntime")


def test_a_resumed_run_tells_of_its_own_rows_only(bundle: Path, tmp_path: Path) -> None:
    parts = (slice(0, 50), slice(50, COUNT))
    first, second = (write_table(tmp_path / f"{part.start}.csv", rows_text(part)) for part in parts)
    snapshot, report = tmp_path / "state.snap", tmp_path / "report.json"
    assert run(bundle, first, "--output", tmp_path / "1.csv", "--snapshot", snapshot) == 0
    assert run(bundle, second, "--output", tmp_path / "2.csv", "--resume", snapshot, "--report", report) == 0
    assert json.loads(report.read_text())["streams"] == msgspec.to_builtins(counted(bundle, part=parts[1]))


def test_a_stream_that_begins_anew_after_a_gap_keeps_its_counts(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "bundle", Tiny(stiffness=50.0))
    table = write_table(tmp_path / "gap.csv", ["time,c0,c1,c2", "0,1,2,3", "0.1,1,2,3", "1e6,1,2,3", "2e6,2,2,2"])
    assert run(path, table, "--on-gap", "reset", "--report", tmp_path / "report.json") == 0
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["streams"][""]["steps"] == found["total"]["steps"] == 4


@pytest.mark.parametrize(("option", "buckets"), [("4", (4,)), ("1,8", (1, 8))])
def test_limited_buckets_are_those_of_a_stream_so_limited(
    option: str, buckets: tuple[int, ...], bundle: Path, tmp_path: Path
) -> None:
    table, report = write_table(tmp_path / "table.csv", rows_text()), tmp_path / "report.json"
    assert run(bundle, table, "--output", tmp_path / "out.csv", "--buckets", option, "--report", report) == 0
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text())))
    assert {row["bucket"] for row in rows} == set(map(str, buckets))
    assert json.loads(report.read_text())["streams"] == msgspec.to_builtins(counted(bundle, buckets))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("3", "bucket 3 is not in the bundle; choose among 1, 2, 4, 8"),
        ("4,1", "give increasing numbers of solver steps, from 1"),
        ("1,x", "--buckets is '1,x', expected whole numbers from 1; write them as 1,4"),
        ("", "write them as 1,4"),
        ("0", "write them as 1,4"),
    ],
)
def test_buckets_that_cannot_be_are_refused_before_any_work(
    option: str, message: str, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_table(tmp_path / "table.csv", rows_text())
    (tmp_path / "out.csv").write_text("an older result")
    before = files_under(tmp_path)
    assert run(bundle, table, "--output", tmp_path / "out.csv", "--force", f"--buckets={option}") == 2
    assert refusal(capsys).endswith(message)
    assert files_under(tmp_path) == before


def test_a_method_without_an_estimate_tells_its_rows_and_cannot_choose(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_table(tmp_path / "table.csv", ROWS)
    tinies = {"fixed": (Tiny(error_estimate=False), "; calls by solver steps: 1: 6"), "none": (Tiny(buckets=()), "")}
    for name, (tiny, calls) in tinies.items():
        path = write_tiny(tmp_path / name, tiny)
        assert run(path, table) == 0
        assert capsys.readouterr().err == f"odestream: 6 rows{calls}; on onnxruntime\n"
        assert run(path, table, "--buckets", "1,4") == 2
        assert "; " in refusal(capsys)


def test_late_rows_are_counted_apart_and_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_tiny(tmp_path / "bundle", Tiny())
    lines = ["time,c0,c1,c2", *(f"{t},1,2,3" for t in (1, 2, 5, 4, 3, 6))]
    first, second = (
        write_table(tmp_path / "first.csv", lines),
        write_table(tmp_path / "second.csv", [lines[0], "5.5,1,2,3"]),
    )
    late, log = ("--on-late", "replay"), ("--record", tmp_path / "log")
    assert run(path, first, *late, *log, "--report", tmp_path / "report.json") == 0
    assert "odestream: 6 rows (2 late), 0 run again" in capsys.readouterr().err
    found = json.loads((tmp_path / "report.json").read_text())
    assert (found["late"], found["total"]["steps"], found["calls"]["rows"]) == (2, 6, 6)
    assert run(path, second, *late, *log, "--resume", tmp_path / "log") == 0
    assert "odestream: 1 row (1 late), 0 run again" in capsys.readouterr().err


def test_a_report_is_not_written_over_anything(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_table(tmp_path / "table.csv", rows_text())
    snapshot = tmp_path / "state.snap"
    assert run(bundle, table, "--snapshot", snapshot) == 0
    capsys.readouterr()
    before = files_under(tmp_path)
    for options in (
        ("--report", table, "--force"),
        ("--report", snapshot),
        ("--report", snapshot, "--resume", snapshot, "--force"),
        ("--report", tmp_path / "x", "--output", tmp_path / "x"),
        ("--report", tmp_path / "absent" / "x"),
    ):
        assert run(bundle, table, *options) == 2
        assert "; " in refusal(capsys)
    assert files_under(tmp_path) == before
