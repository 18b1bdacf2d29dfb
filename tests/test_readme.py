"""What the README tells a reader to type is run, or held against the command's own options."""

import re
import shlex
import subprocess
from functools import partial
from pathlib import Path

import pytest

from odestream.export import export_bundle
from odestream.models.config import PRESETS, CellConfig
from odestream.runtime import Output
from odestream.runtime.cli import main
from odestream.runtime.contract.manifest import TaskSpec, TimeSpec
from tests.helpers.calibration import skip_calibration
from tests.helpers.problems import TINY
from tests.helpers.sequences import random_cell

CONFIG = CellConfig("forecast", 1, TINY, (2.0,), (340.0,), averages=(1.0, 5.0), frequencies=(1.2, 2.4))

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
INLINE = [" ".join(words.split()) for words in re.findall(r"`(odestream\s[^`]+)`", TEXT)]
COMMANDS = [
    shlex.split(line, comments=True)
    for line in [*"".join(BLOCKS).splitlines(), *INLINE]
    if line.startswith("odestream ")
]
QUICKER = {"train": ["--epochs", "1"], "verify": ["--steps", "20"], "bench": ["--seconds", "0.02"]}
SNIPPETS = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def snippet(containing: str) -> str:
    found = [s for s in SNIPPETS if containing in s]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c[1])
def test_every_option_of_every_command_exists(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command[1], "--help"]) == 0
    options = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    assert {word for word in command if word.startswith("--")} <= options


def typed(*words: str) -> None:
    """Type the blocks that hold one of the words, in the working directory: our commands quicker, the rest by sh."""
    for line in "".join(block for block in BLOCKS if any(word in block for word in words)).splitlines():
        command = shlex.split(line, comments=True)
        if command[0] == "odestream":
            assert main(command[1:] + QUICKER.get(command[1], [])) == 0, line
        else:
            subprocess.run(["/bin/sh", "-c", line], check=True)


def test_a_new_user_can_type_all_of_it_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the record to a newer model's memory, each file made by a line before."""
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(PRESETS, "nano", TINY)
    monkeypatch.setattr("odestream.runtime.verbs.run.serve", lambda *_: lambda: None)  # the port may be taken
    skip_calibration(monkeypatch)
    monkeypatch.setattr("odestream.models.train.forecast_report", lambda *_: {"test": {}})  # takes most of the time
    monkeypatch.setattr("odestream.export.bundle.export_bundle", partial(export_bundle, verify_steps=20))
    typed("past.csv", "ahead.csv")
    past, later = (rows_of(name) for name in ("past.csv", "new.csv"))
    assert past + later == rows_of("benchmarks/data/co2_weekly.csv")
    for made, of in {"seen": past, "predictions": later, "answers": past, "more_answers": later}.items():
        assert [row.split(",")[0] for row in rows_of(f"{made}.csv")] == [row.split(",")[0] for row in of]
    assert (tmp_path / "newer.snap").is_file()


def rows_of(name: str) -> list[str]:
    return Path(name).read_text(encoding="utf-8").splitlines()[1:]


def test_the_gru_example_exports_and_runs_with_the_commands_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gru.py").write_text(snippet("GRUCell"))
    monkeypatch.chdir(tmp_path)
    typed("gru:make")
    assert (tmp_path / "gru_bundle" / "manifest.json").is_file()
    header, *rows = capsys.readouterr().out.splitlines()[-3:]
    assert header.startswith("y0,y1")
    assert len(rows) == 2


@pytest.fixture
def bundle_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle of the CO₂ record's kind in the working directory."""
    time = TimeSpec("iso", "day", ticks_per_model_unit=70 * 86_400e9, frequencies=CONFIG.frequencies)
    task = TaskSpec("forecast", ("co2_ppm",), ("co2_ppm",), time="time")
    skip_calibration(monkeypatch)
    export_bundle(random_cell(CONFIG), tmp_path / "bundle", task=task, time=time, buckets=(2, 4), verify_steps=20)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("bundle_here")
def test_the_streaming_examples_run() -> None:
    names: dict[str, object] = {}
    exec(snippet("stream.snapshot()"), names)  # noqa: S102 (the README's own words are what is tested)
    ahead = names["ahead"]
    assert isinstance(ahead, list)
    assert len(ahead) == 2
    exec(snippet("Pool("), names)  # noqa: S102
    assert all(isinstance(names[name], Output) for name in ("north", "south", "out", "later"))


def test_nothing_is_left_to_be_filled_in() -> None:
    assert not re.findall(r"\b(?:DEMO_OUTPUT|RUNTIME|STATUS|TODO|TBD)\b", TEXT)
    assert "Mean absolute error in the last fifth" in TEXT
