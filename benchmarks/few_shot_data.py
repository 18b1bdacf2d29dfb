"""Two tasks of which little is given: oscillators faster than any that were trained on, and ten digits of a class."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from irregular_data import RATES, Count, Problem, ask, damped, family, observe
from odestream.models.checkpoint import Settings
from odestream.models.data import Dataset, Part, load_table
from odestream.runtime.contract.manifest import TaskSpec
from odestream.runtime.table import Series

KNOWN, NEW = (20.0, 60.0), (10.0, 20.0)  # periods, s
A_CLASS = 10  # digits to train on, and as many to choose the rate and the best weights on


def oscillators(count: Count, shots: Sequence[int], seed: int) -> tuple[Problem, dict[int, Problem]]:
    """The family that is known, and by number of streams the one to adapt to: the same clock and scale, other streams,
    and questions about the new family alone. The fewer streams are among the more."""
    known = family(partial(damped, periods=KNOWN), count, seed)
    random = np.random.default_rng([seed, 1])
    given = [observe(damped(random, NEW), 1.0, random) for _ in range(max(shots))]
    truths = [damped(random, NEW) for _ in range(count.test)]
    tests = {rate: tuple(observe(truth, rate, random) for truth in truths) for rate in RATES if rate == 1}
    new = dataclasses.replace(known, tests=tests, questions=ask(truths))
    return known, {shot: dataclasses.replace(new, data=_with(known.data, given[:shot])) for shot in shots}


def digits(test: int, seed: int) -> Dataset:
    """Streams of eight rows: `A_CLASS` of each digit to train on, as many to choose on, `test` of all to test on."""
    from digits import labelled_digits, write_digits  # needs scikit-learn

    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "digits.csv"
        write_digits(table, *labelled_digits())
        task = TaskSpec("classify", tuple(f"pixel{i}" for i in range(8)), ("digit",), (), "time", "image")
        data = load_table(table, task, Settings(seed=seed, time_unit="step"))
    order = np.random.default_rng(seed).permutation(len(data.parts))
    shuffled = [data.parts[i].series for i in order]
    fitted, judged, left = [], [], []
    for label in range(len(data.task.labels)):
        own = [s for s in shuffled if s.labels[-1] == label]
        fitted += own[:A_CLASS]
        judged += own[A_CLASS : 2 * A_CLASS]
        left += own[2 * A_CLASS :]
    tested = [left[i] for i in np.random.default_rng(seed).permutation(len(left))[:test]]
    parts = [Part(s, len(s.ticks), len(s.ticks)) for s in fitted]
    parts += [Part(s, 0, len(s.ticks)) for s in judged]
    return dataclasses.replace(data, parts=(*parts, *(Part(s, 0, 0) for s in tested)))


def _with(data: Dataset, given: Sequence[Series]) -> Dataset:
    """The same clock with other streams, all of them to train on."""
    return dataclasses.replace(data, parts=tuple(Part(s, len(s.ticks), len(s.ticks)) for s in given))
