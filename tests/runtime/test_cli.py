"""The command: its verbs are found without being imported, and every error is one sentence with a status."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import typer

from odestream.runtime import cli
from odestream.runtime.errors import InputError

HEAVY = ("torch", "onnx", "onnxruntime", "matplotlib", "odestream.models", "odestream.export")


def register(monkeypatch: pytest.MonkeyPatch, **verbs: Callable[..., object]) -> None:
    """Make these the only verbs; the functions stand for entry points that load them."""
    entries = {name: SimpleNamespace(name=name, value="somewhere:else", load=load) for name, load in verbs.items()}
    monkeypatch.setattr(cli, "_entry_points", lambda: entries)


def failing(error: BaseException) -> Callable[[], Callable[[], None]]:
    def verb() -> None:
        raise error

    return lambda: verb


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["doctor", "--json"], ["--version"]])
def test_help_and_light_verbs_import_nothing_heavy(arguments: list[str]) -> None:
    code = (
        f"import sys; from odestream.runtime.cli import main; status = main({arguments!r}); "
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]; sys.exit(loaded or status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_help_lists_every_verb_in_the_order_of_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    listed = [line[0] for line in lines if line and line[0] in cli.SUMMARIES]
    assert listed == ["train", "export", "verify", "compile", "run", "replay", "bench", "inspect", "doctor"]


def test_call_without_a_verb_shows_help_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "Verbs:" in capsys.readouterr().out


def test_verb_of_another_package_is_listed_and_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def greet(name: str) -> None:
        print(f"hello {name}")

    register(monkeypatch, greet=lambda: greet)
    assert cli.main(["--help"]) == 0
    assert "greet  From somewhere:else." in capsys.readouterr().out
    assert cli.main(["greet", "you"]) == 0
    assert capsys.readouterr().out == "hello you\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["frob"], "No such command 'frob'; see odestream --help"),
        (["--frob"], "No such option: --frob; see odestream --help"),
        (["doctor", "--frob"], "; see odestream doctor --help"),
        (["doctor", "more"], "; see odestream doctor --help"),
        (["run"], "Missing argument 'BUNDLE'; see odestream run --help"),
        (["run", "bundle"], "Missing option '--input'; see odestream run --help"),
        (["bench", "bundle", "--rate", "fast"], "; see odestream bench --help"),
    ],
)
def test_wrong_call_is_one_sentence_and_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("odestream: error: ")
    assert captured.err.endswith(message + "\n")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "sentence", "status"),
    [
        (InputError("column 'a'\nis missing; name it"), "column 'a' is missing; name it", 2),
        (FileNotFoundError(2, "No such file or directory", "x.csv"), "x.csv: No such file or directory; check", 2),
        (OSError(28, "No space left on device"), "No space left on device; check", 2),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero; run again with --debug", 70),
    ],
)
def test_error_is_one_sentence_with_its_status(
    error: Exception, sentence: str, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    register(monkeypatch, fail=failing(error))
    assert cli.main(["fail"]) == status
    err = capsys.readouterr().err
    assert err.startswith(f"odestream: error: {sentence}")
    assert err.count("\n") == 1


def test_debug_adds_the_traceback_and_keeps_the_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    register(monkeypatch, fail=failing(InputError("wrong; mend it")))
    for arguments in (["--debug", "fail"], ["fail", "--debug"]):
        assert cli.main(arguments) == 2
        assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("ODESTREAM_DEBUG", "1")
    assert cli.main(["fail"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(("error", "status"), [(typer.Exit(1), 1), (typer.Exit(143), 143), (KeyboardInterrupt(), 130)])
def test_verb_chooses_its_status(error: BaseException, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, stop=failing(error))
    assert cli.main(["stop"]) == status


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def load() -> None:
        raise ModuleNotFoundError("No module named 'torch'")

    register(monkeypatch, train=load)
    assert cli.main(["train", "--help"]) == 2
    assert capsys.readouterr().err == (
        "odestream: error: train cannot start here (No module named 'torch'); pip install 'odestream[train]'\n"
    )
