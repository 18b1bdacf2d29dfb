"""Does memory help to read source code, byte by byte?

Models of equal size are trained on sources of the Python standard library and judged on other files, each from an empty
state: bits per byte over all bytes, over those that end a bigram (and a run of six) which the file had before, and over
those that do not. Falsified where, on repeated bigrams, our cell gains less than 0.01 bit a byte over the same cell
whose memories' reads are held back, in the median of the seeds. A byte lasts a whole model unit; the field's limits are
set so that one solver step crosses it.

    python benchmarks/language.py            three seeds, half an hour on one quiet core: a small tier
    python benchmarks/language.py --quick    a few steps of small models; its figures mean nothing

Writes results/language.json, figures/language.png and a section of RESULTS.md; with --quick into runs/language only. An
interrupted run goes on where it stopped.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
import torch
from rich.progress import track

from claim import judged, run
from equal_models import equal, fit_by
from language_data import Corpus, corpus, pooled
from odestream.models.baselines import footprint
from odestream.models.checkpoint import Settings
from odestream.models.config import CellConfig, Sizes
from odestream.models.labelling import Judging, score
from odestream.models.model import Model
from odestream.models.sequences import calls_of_bytes
from odestream.models.train import LABEL_CHUNK, LABEL_LANES
from odestream.models.training.labels import tokens_recipe
from odestream.models.training.regularity import Solving
from results import circumstances_text, markdown_table
from sweep import Sweep

OURS, FORGETFUL = "odestream", "odestream, no reads"
NAMES = {
    OURS: "cell",
    FORGETFUL: "cell",
    "GRU": "gru",
    "gated DeltaNet": "gated-deltanet",
    "sliding window": "sliding-window",
}
LEAST_GAIN = 0.01  # bits a byte
RUNS = (2, 6)
ALL, NEW = "all bytes", "new bigrams"
REPEATED = {length: f"repeated runs of {length}" for length in RUNS}
SIZES = Sizes(hidden=64, field=64, content=32, head=64, gate=32, window=16, slots=16, heads=2, keys=16, values=16)
DECAY_LIMIT, NORM_LIMIT = 1.3, 1.0  # one step of the deployed solver is stable over a unit


@dataclass(frozen=True)
class Plan:
    """Bytes to train on and to choose on, test files and their length, learning rates, training steps, seeds, sizes."""

    training: int
    validation: int
    tests: int
    length: int
    rates: tuple[float, ...]
    steps: int
    seeds: int
    sizes: Sizes = SIZES


FULL = Plan(4_000_000, 4096, 32, 2048, (3e-3, 1e-2), 150, 3)
QUICK = Plan(20_000, 256, 2, 128, (3e-3,), 2, 1, Sizes(8, 8, 8, 8, 8, 2, 2, 1, 4, 4))


def measure(plan: Plan, sweep: Sweep) -> dict[str, Any]:
    """Bits per byte by model and kind of byte, one for each seed."""
    text = corpus(plan.training, plan.validation, plan.tests, plan.length)
    choices = [(name, rate, 0) for name in NAMES for rate in plan.rates]
    print(f"{len(choices) + (plan.seeds - 1) * len(NAMES)} trainings of {plan.steps} steps")

    def get(name: str, rate: float, seed: int) -> dict[str, Any]:
        return dict(sweep.get(f"{text.sha256}/{name}/{rate:g}/{seed}", partial(train, name, rate, seed, text, plan)))

    scores = {choice: get(*choice)["validation"] for choice in track(choices, "learning rates")}
    chosen = {name: min(plan.rates, key=lambda rate: scores[name, rate, 0]) for name in NAMES}
    bits: dict[str, Any] = {name: {} for name in NAMES}
    sizes: dict[str, Any] = {}
    for name, seed in track([(name, seed) for name in NAMES for seed in range(plan.seeds)], "models"):
        point = get(name, chosen[name], seed)
        sizes[name] = {"parameters": point["parameters"], "state_bytes": point["state_bytes"]}
        for kind, value in point["bits"].items():
            bits[name].setdefault(kind, []).append(value)
    shares = {REPEATED[length]: float(np.mean(pooled(text.tests, length))) for length in RUNS}
    return {
        "seeds": list(range(plan.seeds)),
        "training_steps": plan.steps,
        "bytes_seen": plan.steps * LABEL_LANES * LABEL_CHUNK,
        "corpus": {"training_bytes": len(text.training), "test_files": plan.tests, "test_bytes": plan.length}
        | {"sha256": text.sha256, "shares": shares},
        "learning_rates": chosen,
        "sizes": sizes,
        "bits_per_byte": bits,
    }


def train(name: str, rate: float, seed: int, text: Corpus, plan: Plan) -> dict[str, Any]:
    """Train a model and judge it on the test files."""
    torch.manual_seed(seed)
    model = build(name, plan.sizes)
    solving = Solving.of(Settings(seed=seed))
    length = min(LABEL_CHUNK, plan.length)
    recipe = tokens_recipe(model, text.training, text.validation, LABEL_LANES, length, solving)
    best, validation = fit_by(recipe, model, rate, plan.steps, seed)
    parameters, state_bytes = footprint(best)
    return {
        "validation": validation,
        "bits": bits_per_byte(best, text.tests),
        "parameters": parameters,
        "state_bytes": state_bytes,
    }


def build(name: str, sizes: Sizes) -> Model:
    """A model of bytes, untrained."""
    plain = CellConfig("tokens", 1, sizes, (1.0,), (0.0,), decay_limit=DECAY_LIMIT, norm_limit=NORM_LIMIT, steps=1)
    return equal(NAMES[name], plain, **({"without": ("reads",)} if name == FORGETFUL else {}))


def bits_per_byte(model: Model, tests: Sequence[bytes]) -> dict[str, float]:
    """Mean −log₂ p of every byte but each file's first, over all and by whether what it ends was there before."""
    scored = score(model, [Judging(calls_of_bytes(text), 0) for text in tests])
    bits = -scored.log_chances[np.arange(len(scored.labels)), scored.labels] / math.log(2)
    found = {ALL: float(bits.mean())}
    for length in RUNS:
        again = pooled(tests, length)
        found[REPEATED[length]] = float(bits[again].mean()) if again.any() else math.nan
        if length == 2:
            found[NEW] = float(bits[~again].mean())
    return found


def gain(result: Mapping[str, Any], kind: str) -> float:
    """Bits a byte that the memories save on a kind of bytes: median of the seeds, paired."""
    ours, without = (result["bits_per_byte"][name][kind] for name in (OURS, FORGETFUL))
    return float(statistics.median(b - a for a, b in zip(ours, without, strict=True)))


def verdicts(result: Mapping[str, Any]) -> list[str]:
    """Whether the memories pay on repeated bigrams, and which rivals are better on all bytes."""
    saved, kind = gain(result, REPEATED[2]), REPEATED[2]
    said = [
        (saved >= LEAST_GAIN, f"the memories' reads save {saved:.3f} bit a byte on {kind}, {LEAST_GAIN} is asked for")
    ]
    ours = statistics.median(result["bits_per_byte"][OURS][ALL])
    for name in NAMES:
        if name not in (OURS, FORGETFUL):
            theirs = statistics.median(result["bits_per_byte"][name][ALL])
            said.append((ours < theirs, f"fewer bits a byte than {name} ({ours:.3f} against {theirs:.3f})"))
    return judged(said)


def report(result: Mapping[str, Any]) -> str:
    """The section of RESULTS.md."""
    kinds = list(result["bits_per_byte"][OURS])
    rows = [
        [name, *(_cell(by_kind[kind]) for kind in kinds), f"{size['parameters']:,}", f"{size['state_bytes']:,}"]
        for (name, by_kind), size in zip(result["bits_per_byte"].items(), result["sizes"].values(), strict=True)
    ]
    text = result["corpus"]
    shares = ", ".join(f"{kind} {100 * share:.0f} %" for kind, share in text["shares"].items())
    rates = ", ".join(f"{name} {rate:g}" for name, rate in result["learning_rates"].items())
    return "\n\n".join(
        (
            *verdicts(result),
            f"Bits per byte, median of {len(result['seeds'])} seeds (lowest – highest). A small tier for two cores: "
            f"{result['training_steps']} training steps see {result['bytes_seen']:,} bytes, of a text of "
            f"{text['training_bytes']:,}; longer training may tell otherwise. Judged on the first "
            f"{text['test_bytes']:,} bytes of {text['test_files']} other files; of these bytes, {shares}. "
            f"Learning rates, chosen on validation files: {rates}. No reads: what the memories return is held "
            "back, in training too.",
            markdown_table(["", *kinds, "parameters", "state bytes"], rows),
            circumstances_text(),
            "![Bits per byte](figures/language.png)",
        )
    )


def draw(result: Mapping[str, Any], path: Path) -> None:
    """A group of bars for each kind of byte."""
    bits = result["bits_per_byte"]
    kinds, width = list(bits[OURS]), 0.8 / len(bits)
    figure = matplotlib.figure.Figure(figsize=(8, 3.8), layout="constrained")
    axes = figure.subplots()
    for place, (name, by_kind) in enumerate(bits.items()):
        at = np.arange(len(kinds)) + (place - (len(bits) - 1) / 2) * width
        axes.bar(at, [statistics.median(by_kind[kind]) for kind in kinds], width, label=name, color=f"C{place}")
        for x, kind in zip(at, kinds, strict=True):
            axes.scatter([x] * len(by_kind[kind]), by_kind[kind], color="black", s=8, zorder=3)
    axes.set_xticks(range(len(kinds)), kinds)
    axes.set_ylabel("bits per byte")
    axes.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _cell(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f} – {max(values):.3f})"


if __name__ == "__main__":
    run("language", __doc__, (FULL, QUICK), measure, report, draw)
