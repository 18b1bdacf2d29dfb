"""`odestream run`: what it writes against the reference model, and that bad input leaves nothing behind."""

from __future__ import annotations

import csv
import io
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from odestream.runtime.contract.manifest import TaskSpec
from tests.helpers.run_verb import ROWS, files_under, refusal, run, with_task, write_table
from tests.helpers.tiny_bundle import Tiny, TinyReference, write_tiny

COMMAND = (sys.executable, "-m", "odestream.runtime.cli", "run")
HEADER = "time,c0,c0_std,c1,c1_std,c2,c2_std,err,bucket,flagged\n"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("run") / "bundle")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return write_table(tmp_path / "table.csv", ROWS)


def test_forecasts_are_the_reference_models_before_each_row_was_seen(bundle: Path, table: Path, tmp_path: Path) -> None:
    assert run(bundle, table, "--output", tmp_path / "out.csv") == 0
    written = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text())))
    assert [row["time"] for row in written] == ["0", "0.5", "0.75", "2", "2.125", "3"]
    reference = TinyReference(Tiny())
    for row, line in zip(written, ROWS[1:], strict=True):
        time, *cells = line.split(",")
        expected = reference.step(
            [float(c or 0) for c in cells], round(float(time) * 10**9), [float(c != "") for c in cells]
        )
        found = [float(row[f"c{i}"]) for i in range(3)] + [2 * np.log(float(row[f"c{i}_std"])) for i in range(3)]
        np.testing.assert_allclose(found, expected["y"], rtol=1e-5, atol=1e-6)
        assert float(row["err"]) == pytest.approx(float(expected["err"][0]), abs=1e-8)
        assert (row["bucket"], row["flagged"]) == ("1", "0")


def test_line_ends_change_nothing(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = []
    for end in ("\n", "\r\n"):
        assert run(bundle, write_table(tmp_path / "table.csv", ROWS, end)) == 0
        written.append(capsys.readouterr().out)
    assert written[0] == written[1]
    assert written[0].startswith(HEADER)
    assert written[0].count("\n") == len(ROWS)


def test_standard_output_and_a_file_get_the_same_bytes(
    bundle: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(bundle, table) == 0
    assert run(bundle, table, "--output", tmp_path / "out.csv") == 0
    assert (tmp_path / "out.csv").read_bytes().decode() == capsys.readouterr().out


def test_header_without_rows_gives_a_header(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(bundle, write_table(tmp_path / "table.csv", ROWS[:1])) == 0
    assert capsys.readouterr().out == HEADER


def test_snapshot_of_no_rows_is_refused(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write_table(tmp_path / "table.csv", ROWS[:1])
    assert run(bundle, table, "--output", tmp_path / "out.csv", "--snapshot", tmp_path / "streams.snapshot") == 2
    assert "no rows, so there is no stream to save; leave --snapshot out" in refusal(capsys)
    assert list(tmp_path.iterdir()) == [table]


def test_resumed_run_writes_what_an_uninterrupted_one_writes(tmp_path: Path) -> None:
    """Two interleaved streams, cut inside both, the second half in the same snapshot's place."""
    task = TaskSpec("forecast", ("c0", "c1", "c2"), ("c1",), (), "time", "id")
    bundle = with_task(write_tiny(tmp_path / "bundle"), task)
    rng = np.random.default_rng(3)
    rows = [f"{i // 2 + 0.1},{'ab'[i % 2]},{','.join(map(str, rng.normal(size=3)))}" for i in range(40)]
    header, snapshot = "time,id,c0,c1,c2", tmp_path / "streams.snapshot"
    parts = {"whole": rows, "first": rows[:17], "second": rows[17:]}
    tables = {name: write_table(tmp_path / f"{name}.csv", [header, *part]) for name, part in parts.items()}
    outputs = {name: tmp_path / f"{name}.out" for name in parts}
    assert run(bundle, tables["whole"], "--output", outputs["whole"]) == 0
    assert run(bundle, tables["first"], "--output", outputs["first"], "--snapshot", snapshot) == 0
    options = ("--resume", snapshot, "--snapshot", snapshot)
    assert run(bundle, tables["second"], "--output", outputs["second"], *options) == 0
    first, second, whole = (
        outputs[name].read_text().splitlines(keepends=True) for name in ("first", "second", "whole")
    )
    assert first + second[1:] == whole
    assert whole[0] == "time,id,c1,c1_std,err,bucket,flagged\n"


def test_resumed_streams_time_must_advance(
    bundle: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    snapshot = tmp_path / "streams.snapshot"
    assert run(bundle, table, "--snapshot", snapshot) == 0
    before = snapshot.read_bytes()
    capsys.readouterr()
    assert run(bundle, table, "--resume", snapshot, "--snapshot", snapshot) == 2
    assert "line 2: time 0 does not come after 3, where the resumed stream ended; leave out" in refusal(capsys)
    assert snapshot.read_bytes() == before


def test_method_without_an_estimate_leaves_err_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = write_tiny(tmp_path / "bundle", Tiny(error_estimate=False))
    assert run(bundle, write_table(tmp_path / "table.csv", ROWS)) == 0
    assert all(row["err"] == "" for row in csv.DictReader(io.StringIO(capsys.readouterr().out)))


def test_step_above_tolerance_is_flagged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = write_tiny(tmp_path / "bundle", Tiny(err_scale=1e4))
    assert run(bundle, write_table(tmp_path / "table.csv", ROWS)) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["flagged"] for row in rows] == [str(int(float(row["err"]) > 1)) for row in rows]
    assert {row["flagged"] for row in rows} == {"0", "1"}


def test_step_without_column_names_reads_x0_and_so_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = with_task(write_tiny(tmp_path / "bundle", Tiny(buckets=())), TaskSpec())
    assert run(bundle, write_table(tmp_path / "table.csv", ["x0,x1,x2", "1,2,3", "4,,6"])) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert list(rows[0]) == [*(f"y{i}" for i in range(6)), "err", "bucket", "flagged"]
    assert [row["bucket"] for row in rows] == ["", ""]


def test_classes_are_named_and_the_label_column_may_be_absent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = tuple("abcdef")
    task = TaskSpec("classify", ("c0", "c1", "c2"), ("kind",), labels, "time")
    bundle = with_task(write_tiny(tmp_path / "bundle"), task)
    assert run(bundle, write_table(tmp_path / "table.csv", ROWS)) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert list(rows[0]) == ["time", "kind", *(f"p_{label}" for label in labels), "err", "bucket", "flagged"]
    for row in rows:
        shares = {label: float(row[f"p_{label}"]) for label in labels}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-6)
        assert row["kind"] == max(shares, key=lambda label: shares[label])


def test_text_is_read_byte_by_byte(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = write_tiny(tmp_path / "bundle", Tiny(tokens=True))
    (tmp_path / "text.txt").write_bytes("né\n".encode())
    assert run(bundle, tmp_path / "text.txt") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [int(row["byte"]) for row in rows] == list("né\n".encode())
    assert [row["bits"] != "" for row in rows] == [False, True, True, True]


BAD_TABLES = {
    "empty": ([], r"the file is empty; give a table"),
    "missing column": (["time,c0,c2", "0,1,2"], r"no column 'c1', the table has time, c0, c2;"),
    "text": ([*ROWS, "4,1,low,2"], r"line 8 column 'c1': 'low' is not a number; correct it"),
    "time": ([*ROWS, "3,1,1,2"], r"line 8: time 3 does not come after 3; .* sort the rows"),
    "nan": ([*ROWS, "4,1,nan,2"], r"line 8 column 'c1': 'nan' is not a finite number; leave the cell empty"),
    "infinity": ([*ROWS, "4,inf,1,2"], r"line 8 column 'c0': 'inf' is not a finite number; leave the cell empty"),
    "far too late": ([*ROWS, "9e9,1,1,2"], r"line 8: t = .*; start a new stream"),
}


@pytest.mark.parametrize(("rows", "message"), BAD_TABLES.values(), ids=BAD_TABLES.keys())
def test_bad_table_is_refused_and_leaves_nothing_behind(
    rows: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_tiny(tmp_path / "bundle", Tiny(stiffness=1.0))
    table = write_table(tmp_path / "table.csv", rows)
    (tmp_path / "out.csv").write_text("an older result")
    before = files_under(tmp_path)
    options = ("--output", tmp_path / "out.csv", "--snapshot", tmp_path / "streams.snapshot", "--force")
    assert run(bundle, table, *options) == 2
    sentence = refusal(capsys)
    assert str(table) in sentence
    assert re.search(message, sentence)
    assert files_under(tmp_path) == before


def flip_weights(bundle: Path) -> None:
    data = bytearray((bundle / "weights.safetensors").read_bytes())
    data[-1] ^= 1
    (bundle / "weights.safetensors").write_bytes(data)


def raise_schema(bundle: Path) -> None:
    manifest = bundle / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"schema": 1', '"schema": 9'))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_weights, "weights.safetensors: sha256 is"),
        (raise_schema, "schema version 9"),
        (lambda bundle: (bundle / "manifest.json").unlink(), "no manifest.json"),
    ],
)
def test_damaged_bundle_is_refused_and_leaves_nothing_behind(
    damage: Callable[[Path], None], message: str, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_tiny(tmp_path / "bundle")
    damage(bundle)
    before = files_under(tmp_path)
    assert run(bundle, table, "--output", tmp_path / "out.csv") == 2
    sentence = refusal(capsys)
    assert message in sentence
    assert "; " in sentence
    assert files_under(tmp_path) == before


def test_snapshot_of_another_model_or_damaged_is_refused(
    bundle: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    snapshot = tmp_path / "streams.snapshot"
    assert run(write_tiny(tmp_path / "other", Tiny(seed=1)), table, "--snapshot", snapshot) == 0
    capsys.readouterr()
    assert run(bundle, table, "--resume", snapshot) == 2
    assert f"{snapshot}: " in (sentence := refusal(capsys))
    assert "restore it with the bundle that made it" in sentence
    snapshot.write_bytes(snapshot.read_bytes()[:-1])
    assert run(bundle, table, "--resume", snapshot) == 2
    assert "damaged or cut off" in refusal(capsys)
    assert run(bundle, table, "--resume", tmp_path / "absent") == 2
    assert "name a snapshot file" in refusal(capsys)


@pytest.mark.parametrize("option", ["--output", "--snapshot"])
def test_path_that_exists_is_replaced_only_with_force(
    option: str, bundle: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "there"
    path.write_text("an older result")
    assert run(bundle, table, option, path) == 2
    assert (
        refusal(capsys) == f"odestream: error: {path} exists already; choose another path or pass --force to replace it"
    )
    assert path.read_text() == "an older result"
    assert run(bundle, table, option, path, "--force") == 0
    assert path.read_bytes() != b"an older result"


def test_unknown_backend_is_refused(bundle: Path, table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(bundle, table, "--backend", "abacus") == 2
    assert "unknown backend 'abacus'; choose" in refusal(capsys)


def live(bundle: Path, *options: str | Path) -> subprocess.Popen[bytes]:
    """The command as a process of its own, reading a pipe."""
    arguments = [*COMMAND, str(bundle), "--input", "-", *map(str, options)]
    return subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)


def test_row_of_a_pipe_is_answered_before_the_pipe_ends(bundle: Path) -> None:
    with live(bundle) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"time,c0,c1,c2\n0,1,2,3\n")
        assert process.stdout.readline().decode() == HEADER
        assert process.stdout.readline().startswith(b"0,")
        process.stdin.write(b"1,1,2,3\n")
        assert process.stdout.readline().startswith(b"1,")
        process.stdin.close()
        assert process.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_the_snapshot_and_the_rows_so_far(number: signal.Signals, bundle: Path, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    with live(bundle, "--snapshot", tmp_path / "streams.snapshot") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"time,c0,c1,c2\n0,1,2,3\n")
        assert process.stdout.readline().decode() == HEADER
        assert process.stdout.readline().startswith(b"0,")
        process.send_signal(number)
        assert process.wait() == 128 + number
    ready.write_text("time,c0,c1,c2\n1,1,2,3\n")
    assert run(bundle, ready, "--resume", tmp_path / "streams.snapshot") == 0


def test_reader_that_leaves_ends_the_run_quietly(bundle: Path) -> None:
    with live(bundle) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(b"time,c0,c1,c2\n0,1,2,3\n")
        process.stdout.readline()
        process.stdout.close()
        process.stdin.write(b"".join(b"%d,1,2,3\n" % i for i in range(1, 50)))
        process.stdin.close()
        assert process.wait() == 141
        assert process.stderr.read() == b""


def test_output_folder_that_is_absent_is_named(
    bundle: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(bundle, table, "--output", tmp_path / "absent" / "out.csv") == 2
    assert "absent; create it first" in refusal(capsys)
    assert list(tmp_path.iterdir()) == [table]
