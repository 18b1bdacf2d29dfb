"""What the README tells a reader to type is run, or held against the command's own options."""

import re
import shlex
from pathlib import Path

import pytest

from odestream.export import export_bundle
from odestream.models.config import CellConfig
from odestream.runtime import Output
from odestream.runtime.cli import main
from odestream.runtime.contract.manifest import TaskSpec, TimeSpec
from tests.helpers.calibration import skip_calibration
from tests.helpers.problems import TINY
from tests.helpers.sequences import random_cell

CONFIG = CellConfig("forecast", 1, TINY, (2.0,), (340.0,), averages=(1.0, 5.0), frequencies=(1.2, 2.4))

TEXT = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line)
    for block in re.findall(r"^```sh\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
    if line.startswith("odestream ")
]
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


def test_the_gru_example_exports_with_the_command_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gru.py").write_text(snippet("GRUCell"))
    monkeypatch.chdir(tmp_path)
    command = next(c for c in COMMANDS if "gru:make" in c)
    assert main(command[1:]) == 0
    assert (tmp_path / "gru_bundle" / "manifest.json").is_file()


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
