"""The `odestream` command: finds its verbs, runs one, and turns errors into one sentence and an exit status.

Verbs are entry points of the group `odestream.verbs`; each layer brings its own, and only the verb that was asked
for is imported. Exit status: 0 good, 1 a check failed, 2 the input or the call was wrong, 70 a fault of odestream
itself, 128 + n stopped by signal n.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from importlib import metadata
from typing import Annotated, Any

import typer
import typer.core
import typer.main

from odestream.runtime.errors import CompatError, OdestreamError

GROUP = "odestream.verbs"
DEBUG_VARIABLE = "ODESTREAM_DEBUG"
WRONG_INPUT, OWN_FAULT, INTERRUPTED = 2, 70, 130

# Verbs in the order of their use, with what `odestream --help` says of them without importing them, and the extra
# that brings what they import.
SUMMARIES = {
    "train": ("Train a model on a table or a text.", "train"),
    "export": ("Export a trained model, or any step module, to a bundle.", "train"),
    "verify": ("Check that a bundle still computes what it was exported to compute.", None),
    "compile": ("Build a bundle's graphs for this device, or for GPUs that are not here.", "trt-rtx"),
    "run": ("Stream a table through a bundle and write its predictions.", None),
    "replay": ("Run a recorded log again: a moment, all of it, or into a new model.", None),
    "bench": ("Measure a bundle's latency on this machine.", "bench"),
    "inspect": ("Show what is in a bundle or a snapshot.", None),
    "doctor": ("Show what is installed and what each backend needs.", None),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status; `arguments` default to the process's own."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given or os.environ.get(DEBUG_VARIABLE, "") not in ("", "0")
    try:
        status = typer.main.get_command(_app()).main(
            [argument for argument in given if argument != "--debug"], prog_name="odestream", standalone_mode=False
        )
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 (the outermost frame: every error becomes a sentence)
        if debug:
            traceback.print_exc()
        sentence, status = _explain(error)
        print(f"odestream: error: {' '.join(sentence.split())}", file=sys.stderr)
    return status if isinstance(status, int) else 0


class VerbGroup(typer.core.TyperGroup):
    """A command group that knows its verbs' names without importing them."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override, unused-ignore]
        """Names of all verbs: the known ones in the order of their use, then those that others registered."""
        del ctx
        found = _entry_points()
        return [*(verb for verb in SUMMARIES if verb in found), *sorted(set(found) - set(SUMMARIES))]

    def get_command(self, ctx: typer.Context, cmd_name: str) -> Any:  # type: ignore[override, unused-ignore]
        """The verb's command, imported now; None where there is no such verb, CompatError where it lacks an extra."""
        del ctx
        entry = _entry_points().get(cmd_name)
        if entry is None:
            return None
        app = _plain_app()
        app.command(cmd_name)(_load(entry))
        return typer.main.get_command(app)

    def format_commands(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override, unused-ignore]
        """List the verbs from their summaries, so that `--help` imports none of them."""
        verbs = self.list_commands(ctx)
        with formatter.section("Verbs"):
            formatter.write_dl([(verb, _summary(verb)) for verb in verbs])


def _app() -> typer.Typer:
    app = _plain_app(cls=VerbGroup)
    app.callback(invoke_without_command=True, subcommand_metavar="VERB [ARGUMENTS]")(_root)
    return app


def _plain_app(**options: Any) -> typer.Typer:
    return typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, **options)


def _root(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help=f"Show tracebacks; so does {DEBUG_VARIABLE}=1 in the environment.")
    ] = False,
) -> None:
    """Train continuous-time sequence models, export them, and stream them on small devices."""
    del debug  # main() takes it out, wherever it stands
    if version:
        print(f"odestream {metadata.version('odestream')}")
    elif ctx.invoked_subcommand is None:
        print(ctx.get_help())
        raise typer.Exit(WRONG_INPUT)


def _entry_points() -> dict[str, metadata.EntryPoint]:
    return {entry.name: entry for entry in metadata.entry_points(group=GROUP)}


def _summary(verb: str) -> str:
    text, _ = SUMMARIES.get(verb, (f"From {_entry_points()[verb].value}.", None))
    return text


def _load(entry: metadata.EntryPoint) -> Any:
    try:
        return entry.load()
    except ImportError as cause:
        _, extra = SUMMARIES.get(entry.name, ("", None))
        remedy = f"pip install 'odestream[{extra}]'" if extra else "install odestream again"
        raise CompatError(f"{entry.name} cannot start here ({cause}); {remedy}") from cause


# The command-line parser's own errors. Typer brings the parser along in some versions and depends on it in others;
# in all of them its public BadParameter descends from this class.
_UsageProblem: type[Any] = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")


def _explain(error: BaseException) -> tuple[str, int]:
    """What to say of an error, and the exit status."""
    if isinstance(error, OdestreamError):
        return str(error), WRONG_INPUT
    if isinstance(error, _UsageProblem):
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "odestream"
        return f"{error.format_message().rstrip('.')}; see {command} --help", WRONG_INPUT
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return "interrupted; nothing half-written was left", INTERRUPTED
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}; check the path, its permissions and the space left", WRONG_INPUT
    return f"{type(error).__name__}: {error}; run again with --debug and report what it shows", OWN_FAULT


if __name__ == "__main__":
    sys.exit(main())
