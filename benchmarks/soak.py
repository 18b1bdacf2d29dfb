"""Does state survive? Long streams with interruptions, kill −9 at random points, far clocks, and memory over time.

    python benchmarks/soak.py --bundle BUNDLE [--backend B] [--streams-minutes 15] [--kills-minutes 10] …
    python benchmarks/soak.py --bundle BUNDLE --only streams    one part; the others stay as they were published
    python benchmarks/soak.py --quick    a small random cell; checks the script, writes into runs/soak only

Rows are drawn from the bundle's stored vectors, 100 a second.

streams   64 streams in a fleet with a log, which is saved and restored, put away, and resumed from its log in turn; in
          a second process, plain streams are stepped over the same rows and never touched: every answer and state is
          compared
kills     eight children at a time step a fleet that keeps a log and writes snapshots, and are killed at random moments,
          at most 10,000 times; what was finished must be there, and be what streams are that were never interrupted
clocks    one stream from day 0, 1, 7, 30 and 365, its phase's origin moved alike
memory    one stream, its process's resident memory at every twentieth

Writes results/soak.json and a section of RESULTS.md. Exit status 1 where a byte differs or a call was lost.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import replace as changed
from numpy.typing import NDArray

from odestream.runtime import Batcher, Model, load
from odestream.runtime.backends import open_engine
from odestream.runtime.fleet import Fleet
from odestream.runtime.flight import resume
from odestream.runtime.recorder import Recorder
from results import HERE, circumstances, circumstances_text, markdown_table, publish, write_json
from soak_kills import kills
from soak_rows import TICK, Rows, answered, digests

PUBLISHED = HERE / "results" / "soak.json"
RUNS = Path(__file__).parents[1] / "runs" / "soak"
HOUR = 3600 * 100  # rows
STREAMS = 64
MOST_KILLS = 10_000
DAYS = (0, 1, 7, 30, 365)
MINUTES = {"streams": 15.0, "kills": 10.0, "clocks": 1.0, "memory": 2.0}
EVERY = 1000  # calls between two interruptions
PAGE = os.sysconf("SC_PAGE_SIZE")
DURABLE = (
    "A call that was answered, and a snapshot that was written, outlive a kill of the process: both are demanded of "
    "what is found. What a power cut may take is not tested here (see `Recorder.sync`)."
)
UNNEEDED = (
    "No kill left a snapshot that could not be read, so that the generation before it was never needed: that it is "
    "then read is held by unit tests alone."
)


def main() -> None:
    """Run each part for its minutes, or one of them, print the table, and publish."""
    options = _options()
    with tempfile.TemporaryDirectory() as folder:
        bundle = options.bundle or _random_bundle(Path(folder) / "bundle")
        with load(bundle, backend=options.backend) as model:
            chosen = [options.only] if options.only else list(MINUTES)
            parts = {part: _run(part, model, Path(folder), options) for part in chosen}
    if options.only:
        parts = json.loads(PUBLISHED.read_text("utf-8")) | parts
    text = section(parts)
    print(text)
    if options.quick:
        write_json(RUNS / "soak.json", parts)
    else:
        publish("soak", parts, text)
    if failed(parts):
        sys.exit(1)


def _run(part: str, model: Model, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What a part found, and how it was run."""
    minutes = getattr(options, f"{part}_minutes")
    about = {
        "bundle": model.manifest.name,
        "backend": model.backend,
        "minutes": minutes,
        "circumstances": circumstances(),
    }
    run: dict[str, Callable[[float], dict[str, Any]]] = {
        "streams": lambda seconds: interrupted_streams(model, folder, options.streams, seconds),
        "kills": lambda seconds: kills(model, folder, options.kills, seconds),
        "clocks": lambda seconds: far_clocks(model, seconds),
        "memory": lambda seconds: memory(model, seconds),
    }
    return run[part](60 * minutes) | about


def failed(parts: dict[str, dict[str, Any]]) -> bool:
    """Whether a byte differs, a call that was finished is gone, or the children never finished one."""
    return not parts["kills"]["calls"] or any(
        parts[name].get("differing_bytes") or parts[name].get("lost") for name in MINUTES
    )


def interrupted_streams(model: Model, folder: Path, streams: int, seconds: float) -> dict[str, Any]:
    """A fleet that is saved, put away and resumed from its log, beside plain streams that are left alone."""
    log, rows = folder / "streams", Rows(model, streams)
    alone = _LeftAlone(model, rows)  # before there is a log, whose lock a process takes along
    fleet = Fleet(model, recorder=Recorder(log))
    ours = np.zeros_like(alone.found)
    end, differing, number, interruptions = time.monotonic() + seconds, 0, 0, 0
    while time.monotonic() < end or not number:
        alone.begin(number)
        for place in range(EVERY):
            ours[place] = answered(fleet.step(rows.call(number + place)))
        number += EVERY
        theirs = alone.finish()
        differing += int((ours != alone.found).sum())
        differing += sum(a != b for a, b in zip(digests(fleet.states()), theirs, strict=True))
        fleet = _interrupt(fleet, model, log, interruptions % 3)
        interruptions += 1
    fleet.close()
    return {
        "streams": streams,
        "rows": number * streams,
        "hours_each": number / HOUR,
        "interruptions": interruptions,
        "differing_bytes": differing,
    }


class _LeftAlone:
    """Plain streams over the same rows in a process of their own. found: its answers, `[EVERY, B, bytes]`."""

    def __init__(self, model: Model, rows: Rows) -> None:
        y = model.manifest.spec.output("y")
        shape = EVERY, len(rows.names), 8 + 4 * (0 if y is None else y.size)
        self.found: NDArray[np.uint8] = np.frombuffer(mmap.mmap(-1, int(np.prod(shape))), np.uint8).reshape(shape)
        fork = get_context("fork")
        self._pipe, other = fork.Pipe()
        fork.Process(target=self._run, args=(model, rows, other), daemon=True).start()
        other.close()  # so that the end of a process that fails is heard of

    def begin(self, number: int) -> None:
        """Take the calls from that number on."""
        self._pipe.send(number)

    def finish(self) -> list[str]:
        """Wait for the answers to them; the digests of the streams after them."""
        found: list[str] = self._pipe.recv()
        return found

    def _run(self, model: Model, rows: Rows, pipe: Connection) -> None:
        batcher, streams = Batcher(model), [model.stream() for _ in rows.names]
        while True:
            number = pipe.recv()
            for place in range(EVERY):
                x, t = rows.arrays(number + place)
                self.found[place] = answered(batcher.step(streams, x, np.full(len(x), t)))
            pipe.send(digests({name: stream.save() for name, stream in zip(rows.names, streams, strict=True)}))


def _interrupt(fleet: Fleet, model: Model, log: Path, kind: int) -> Fleet:
    """Save and restore, put every second stream away, or begin anew from the log."""
    if kind == 0:
        fleet.restore(fleet.snapshot())
        return fleet
    if kind == 1:
        fleet.evict(fleet.awake[::2])
        return fleet
    fleet.close()
    return resume(model, log, Recorder(log))


def far_clocks(model: Model, seconds: float) -> dict[str, Any]:
    """The same stream begun on several days; a model's phases count from an origin that is moved with it."""
    rows, differing, steps, end = Rows(model, 1, 2), 0, 0, time.monotonic() + seconds
    with ExitStack() as stack:
        shifts = [day * 86_400 * 10**9 for day in DAYS]
        fleets = [Fleet(stack.enter_context(_moved(model, shift))) for shift in shifts]
        for call in rows.calls():
            answers = [
                answered(fleet.step([changed(row, t=(row.t or 0) + shift) for row in call]))
                for fleet, shift in zip(fleets, shifts, strict=True)
            ]
            differing += sum(int((answer != answers[0]).sum()) for answer in answers[1:])
            steps += 1
            if time.monotonic() > end:
                break
        first, *others = (fleet.states()["s0"].arena.tobytes() for fleet in fleets)
    differing += sum(a != b for other in others for a, b in zip(first, other, strict=True))
    return {"days": DAYS, "steps": steps, "differing_bytes": differing}


def _moved(model: Model, shift: int) -> Model:
    """The same model, its clock's origin `shift` ticks later."""
    spec, manifest = model.manifest.time, model.manifest
    moved = msgspec.structs.replace(manifest, time=msgspec.structs.replace(spec, origin=spec.origin + shift))
    bundle = replace(model.bundle, manifest=moved)
    return Model(bundle, open_engine(model.backend, bundle, 1), "as the other one")


def memory(model: Model, seconds: float) -> dict[str, Any]:
    """Resident memory of this process while one stream steps; its growth, and its slope over the second half."""
    stream, rows = model.stream(), [row for number in range(64) for row in Rows(model, 1, 3).call(number)]
    sizes, steps, t = [], 0, model.manifest.time.origin
    for part in range(20):
        until = time.monotonic() + seconds / 20
        while time.monotonic() < until:
            for row in rows:
                t += TICK
                stream.step(row.x, t)
            steps += len(rows)
        sizes.append(int(Path("/proc/self/statm").read_text().split()[1]) * PAGE)
        del part
    slope = float(np.polyfit(np.linspace(0.5, 1, 10), sizes[10:], 1)[0]) * 1e6 / steps
    return {"steps": steps, "growth_bytes": sizes[-1] - sizes[0], "slope_bytes_per_million_steps": slope}


def section(parts: dict[str, dict[str, Any]]) -> str:
    """The table, and what was run where."""
    s, k, c, m = (parts[name] for name in MINUTES)
    slope = f"slope {m['slope_bytes_per_million_steps'] / 1024:,.1f} KiB a million steps"
    rows = [
        ("streams", f"{s['streams']} × {s['hours_each']:.3g} h at 100 Hz, {s['rows']:,} rows", s["interruptions"], s),
        (
            "kill −9",
            f"{k['calls']:,} calls and {k['snapshots']:,} snapshots finished, {k['lost']} lost, "
            f"the generation before read {k['previous_generation']} times",
            k["kills"],
            k,
        ),
        ("clocks", f"{c['steps']:,} steps from day {', '.join(map(str, c['days']))}", len(c["days"]), c),
        ("memory", f"{m['steps']:,} steps, {m['growth_bytes'] / 1024:,.0f} KiB of growth, {slope}", 0, {}),
    ]
    cells = [[name, amount, f"{count:,}", str(part.get("differing_bytes", ""))] for name, amount, count, part in rows]
    table = markdown_table(["", "amount", "interruptions, kills, starts", "differing bytes"], cells)
    return "\n\n".join([table, DURABLE, *_lives(k), *_how(parts)])


def _lives(found: dict[str, Any]) -> list[str]:
    """Where children were when they were killed, if that was counted, and whether a generation before was needed."""
    said = []
    if "stepping" in found:
        stepping, rest = found["stepping"], found["kills"] - found["stepping"]
        said.append(f"{stepping:,} children were killed while they stepped, {rest:,} while they began.")
    return said if found["previous_generation"] else [*said, UNNEEDED]


def _how(parts: dict[str, dict[str, Any]]) -> list[str]:
    """Under which circumstances each part was run, those that share them together."""
    found: dict[str, list[str]] = {}
    for name in MINUTES:
        part = parts[name]
        where = f"{part['bundle']} on {part['backend']}. {circumstances_text(part['circumstances'])}"
        most = f" or {MOST_KILLS:,} kills" if name == "kills" else ""
        found.setdefault(where, []).append(f"{name} {part['minutes']:g} minutes{most}")
    return [f"{', '.join(names)}: {where}" for where, names in found.items()]


def _random_bundle(path: Path) -> Path:
    from adaptive_models import random_model

    return random_model(path, rows=40).bundle


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Soak a bundle's streams; see the head of this file.", allow_abbrev=False
    )
    parser.add_argument("--bundle", type=Path, help="of `odestream export`; a small random cell unless given")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--only", choices=list(MINUTES), help="run this part, and keep the others' published results")
    for part, minutes in MINUTES.items():
        parser.add_argument(f"--{part}-minutes", type=float, default=minutes)
    parser.add_argument("--streams", type=int, default=STREAMS)
    parser.add_argument("--kills", type=int, default=MOST_KILLS, help="at most")
    parser.add_argument("--quick", action="store_true", help="a few seconds: check that the script works")
    options = parser.parse_args()
    if options.quick:
        options.kills, options.streams = 20, 8
        for part in MINUTES:
            setattr(options, f"{part}_minutes", 0.05)
    return options


if __name__ == "__main__":
    main()
