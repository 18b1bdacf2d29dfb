"""`odestream run --record` and `odestream replay`: what was run is run again, shown and handed to a new model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from odestream.runtime import recorder
from odestream.runtime.cli import main
from odestream.runtime.contract.manifest import TaskSpec
from odestream.runtime.inputlog import Segment, decode_segment
from odestream.runtime.recorder import segment_paths
from tests.helpers.run_verb import refusal, run, write_table
from tests.helpers.tiny_bundle import NANO_MEMBERS, Tiny, write_tiny
from tests.runtime.test_verb_run import with_task

TASK = TaskSpec("forecast", ("c0", "c1", "c2"), ("c1",), (), "time", "id")
HEADER = "time,id,c0,c1,c2"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("replay") / "bundle"
    return with_task(write_tiny(path, Tiny(members=NANO_MEMBERS)), TASK)


def rows(count: int = 60, seed: int = 0, start: float = 0.0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [
        f"{start + i // 3 + 0.1 * (i % 3):g},{'abc'[i % 3]},{','.join(f'{v:.4f}' for v in rng.normal(size=3))}"
        for i in range(count)
    ]


@pytest.fixture
def log(bundle: Path, tmp_path: Path) -> Path:
    table = write_table(tmp_path / "table.csv", [HEADER, *rows()])
    assert run(bundle, table, "--output", tmp_path / "out.csv", "--record", tmp_path / "log") == 0
    return tmp_path / "log"


def replay(*arguments: str | Path) -> int:
    return main(["replay", *map(str, arguments)])


def test_a_log_runs_again_with_no_difference(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert replay(log) == 0
    assert "60 rows of 1 segments run again: 0 differ from what was recorded." in capsys.readouterr().out
    assert replay(log, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"segments": 1, "rows": 60, "differing": 0, "damage": {}}


def test_an_answer_that_is_no_longer_the_same_is_found(
    log: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("odestream.runtime.flight.answer_digest", lambda answer: b"otherwis")
    assert replay(log) == 1
    assert "60 differ" in capsys.readouterr().out
    assert replay(log, "--at", "7.5", "--stream", "b") == 1
    assert "as recorded  differs" in capsys.readouterr().out


def test_damage_is_told_and_what_came_before_is_run(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (path,) = segment_paths(log)
    path.write_bytes(path.read_bytes()[:-10])
    assert replay(log) == 0
    told = capsys.readouterr().out
    assert "57 rows of 1 segments" in told
    assert "is cut off at byte" in told


def test_a_moment_shows_what_came_in_was_answered_and_held(
    log: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = dict(zip((tmp_path / "out.csv").read_text().splitlines(), [HEADER, *rows()], strict=True))
    answer, row = next((out.split(","), row.split(",")) for out, row in written.items() if out.startswith("7.1,b,"))
    assert replay(log, "--at", "7.5", "--stream", "b", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["time"], shown["in c0"], shown["out c1"], shown["as recorded"]) == (
        "7.1",
        str(np.float32(row[2])),
        answer[2],
        "the same, bit for bit",
    )
    assert {member["name"] for member in shown["members"]} == {"h", "n", *NANO_MEMBERS}
    assert shown["reads"] == [], "the tiny model reads no memory"
    assert replay(log, "--at", "7.5", "--stream", "b") == 0
    told = capsys.readouterr().out
    assert "32 of 32 places filled" in told
    assert "No memory held anything that the answer could read." in told


def test_a_new_model_is_filled_and_goes_on(log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = with_task(write_tiny(tmp_path / "new", Tiny(members=NANO_MEMBERS, seed=3, name="new")), TASK)
    assert replay(log, "--bundle", new, "--snapshot", tmp_path / "s") == 0
    assert "3 streams of new from 60 rows" in capsys.readouterr().out
    second = write_table(tmp_path / "second.csv", [HEADER, *rows(30, 1, 100.0)])
    assert run(new, second, "--resume", log) == 2
    assert refusal(capsys).endswith(f": odestream replay {log} --bundle BUNDLE --snapshot FILE"), "what was done here"
    assert run(new, second, "--resume", tmp_path / "s") == 0
    filled = capsys.readouterr().out
    whole = write_table(tmp_path / "whole.csv", [HEADER, *rows(), *rows(30, 1, 100.0)])
    assert run(new, whole) == 0
    assert capsys.readouterr().out.splitlines()[61:] == filled.splitlines()[1:]


def test_a_run_goes_on_from_a_log_and_in_it(
    bundle: Path, log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    second = write_table(tmp_path / "second.csv", [HEADER, *rows(30, 1, 100.0)])
    assert run(bundle, second, "--resume", log, "--record", log) == 0
    resumed = capsys.readouterr().out
    whole = write_table(tmp_path / "whole.csv", [HEADER, *rows(), *rows(30, 1, 100.0)])
    assert run(bundle, whole) == 0
    assert capsys.readouterr().out.splitlines()[61:] == resumed.splitlines()[1:]
    assert replay(log) == 0
    assert "90 rows of 2 segments run again: 0 differ" in capsys.readouterr().out


def test_a_log_is_neither_mixed_nor_resumed_under_other_policies(
    bundle: Path, log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    table = tmp_path / "table.csv"
    assert run(bundle, table, "--record", log) == 2
    assert f"holds a log already; go on with it by --resume {log}" in refusal(capsys)
    assert run(bundle, table, "--resume", log, "--record", log, "--on-late", "replay") == 2
    wanted = "was recorded with other options; resume it with --on-gap error --on-late error --batch 64"
    assert wanted in refusal(capsys)
    assert run(bundle, table, "--resume", log, "--record", log, "--batch", "8") == 2
    assert wanted in refusal(capsys)
    assert run(bundle, table, "--resume", log, "--record", log, "--buckets", "1") == 2
    assert wanted in refusal(capsys)
    assert replay(log, "--at", "1", "--snapshot", tmp_path / "s") == 2
    assert "give one of them" in refusal(capsys)
    assert replay(tmp_path / "none") == 2
    assert "no such folder" in refusal(capsys)


def test_a_moment_of_several_streams_needs_one_of_their_names(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert replay(log, "--at", "7.5") == 2
    assert refusal(capsys).endswith(
        "holds the streams a, b, c; --at shows a moment of one stream: name one of them by --stream"
    )
    assert replay(log, "--at", "7.5", "--stream", "d") == 2
    assert refusal(capsys).endswith("the streams a, b, c; --stream d is not in it: name one of them by --stream")


def test_a_moment_of_a_log_s_only_stream_needs_no_name(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = [HEADER, *(row for row in rows() if ",a," in row)]
    assert run(bundle, write_table(tmp_path / "t.csv", alone), "--record", tmp_path / "log") == 0
    capsys.readouterr()
    assert replay(tmp_path / "log", "--at", "7.5", "--json") == 0
    assert json.loads(capsys.readouterr().out)["time"] == "7"


@pytest.mark.parametrize("asked", ["", "--at 7.5 --stream b", "--snapshot {folder}/s"])
def test_a_log_is_decoded_once(log: Path, tmp_path: Path, asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[Path] = []

    def decode(data: bytes, path: Path) -> Segment:
        decoded.append(path)
        return decode_segment(data, path)

    monkeypatch.setattr(recorder, "decode_segment", decode)
    assert replay(log, *asked.format(folder=tmp_path).split()) == 0
    assert decoded == segment_paths(log)


def test_late_rows_of_a_table_end_in_the_state_of_the_sorted_table(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ordered = rows()
    late = [*ordered[:20], *ordered[26:40], *ordered[20:26], *ordered[40:]]
    tables = [write_table(tmp_path / name, [HEADER, *each]) for name, each in (("o", ordered), ("l", late))]
    for table in tables:
        options = ("--on-late", "replay", "--snapshot", table.with_suffix(".snap"))
        assert run(bundle, table, *options) == 0
    assert (tmp_path / "o.snap").read_bytes() == (tmp_path / "l.snap").read_bytes()
    capsys.readouterr()
    assert run(bundle, tables[1]) == 2
    assert "does not come after" in refusal(capsys)


@pytest.mark.parametrize("grouped", [False, True], ids=["interleaved", "one after the other"])
def test_streams_that_share_calls_write_what_they_write_row_by_row(
    bundle: Path, tmp_path: Path, grouped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tiny graph's sums do not depend on the number of rows, so here they are the same bytes."""
    monkeypatch.setattr("odestream.runtime.verbs.run.WINDOW", 50)
    table_rows = sorted(rows(), key=lambda row: row.split(",")[1]) if grouped else rows()
    table = write_table(tmp_path / "t.csv", [HEADER, *table_rows])
    for batch in ("1", "64"):
        options = ("--output", tmp_path / f"{batch}.csv", "--snapshot", tmp_path / f"{batch}.snap", "--batch", batch)
        assert run(bundle, table, *options) == 0
    for kind in ("csv", "snap"):
        assert (tmp_path / f"1.{kind}").read_bytes() == (tmp_path / f"64.{kind}").read_bytes()


def test_missed_deadlines_are_told_and_reported(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_table(tmp_path / "t.csv", [HEADER, *rows()])
    assert run(bundle, table, "--deadline", "1e-6", "--report", tmp_path / "r.json") == 0
    assert "60 of 60 calls missed the deadline of 1e-06 ms" in capsys.readouterr().err
    calls = json.loads((tmp_path / "r.json").read_text())["calls"]
    assert (calls["missed"], calls["rows"], calls["streams"]) == (60, 60, {"a": 20, "b": 20, "c": 20})
    assert 0 < calls["p50"] <= calls["p99.9"]
    assert run(bundle, table, "--deadline", "0") == 2
