"""Classes and next bytes: walking sequences and scoring what the cell says after each call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from odestream.models.cell import Cell
from odestream.models.config import VOCABULARY
from odestream.models.data import Dataset, Rows
from odestream.models.flow import Integrator
from odestream.models.model import Model
from odestream.models.sequences import MAX_CALLS, MAX_PIECES, Calls, calls_of, calls_of_bytes, longest_call, stack
from odestream.models.solver_gate import solver_gate
from odestream.models.unroll import unroll

Floats = NDArray[np.float64]
Report = dict[str, Any]

AT_ONCE = 64  # sequences walked side by side
CALLS_AT_ONCE = 512
WARM_CALLS = 512  # before the first call that is judged, where a stream is split in time
GATE_CALLS = 256  # of a sequence that the solver gate looks at; it compares solvers on the same calls
TEXT_LANES, TEXT_CALLS = 16, 4096  # a text is judged in so many pieces, each from an empty state


class Judging(NamedTuple):
    """A sequence and the call from which on its labels count."""

    calls: Calls
    first: int


class Scored(NamedTuple):
    """Labelled calls of all sequences: log-probabilities [Q, Y], labels [Q], whether the sequence's last label [Q]."""

    log_chances: Floats
    labels: Rows
    last: NDArray[np.bool_]


@torch.no_grad()
def score(
    cell: Model, judged: Sequence[Judging], steps: int | None = None, integrator: Integrator | None = None
) -> Scored:
    """Walk every sequence from a new state; steps, integrator: of the flow, as in `Cell.expect`."""
    parts = [_score_some(cell, judged[i : i + AT_ONCE], steps, integrator) for i in range(0, len(judged), AT_ONCE)]
    return Scored(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def log_loss(scored: Scored) -> float:
    """Mean −log p(label), in nats."""
    return float(-scored.log_chances[np.arange(len(scored.labels)), scored.labels].mean())


def validation_sequences(data: Dataset, cell: Model, steps: int, most: int = MAX_PIECES) -> list[Judging]:
    """What a classifier is judged on while it trains. most: calls that a gap may take, see `calls_of`."""
    return _judged(data, cell, steps, [(p.validation, p.test) for p in data.parts], most)


def classify_report(cell: Model, data: Dataset) -> Report:
    """Accuracy and log-loss on test and validation rows beside always saying the commonest class of training."""
    counts = np.bincount(
        np.concatenate([p.series.labels[: p.validation] for p in data.parts]) + 1, minlength=len(data.task.labels) + 1
    )[1:]
    steps = cell.config.steps
    tests = _judged(data, cell, steps, [(p.test, len(p.series.ticks)) for p in data.parts], MAX_CALLS)
    return {
        "test": _class_figures(cell, tests, counts),
        "validation": _class_figures(cell, validation_sequences(data, cell, steps, MAX_CALLS), counts),
        **_solved(cell, validation_sequences(data, cell, 1)),
    }


def text_sequences(text: bytes) -> list[Judging]:
    """A text as pieces side by side, at most `TEXT_CALLS` bytes each."""
    size = min(TEXT_CALLS, max(2, len(text) // TEXT_LANES))
    starts = np.linspace(0, max(0, len(text) - size), min(TEXT_LANES, max(1, len(text) // size))).astype(int)
    return [Judging(calls_of_bytes(text[s : s + size]), 0) for s in starts]


def tokens_report(cell: Model, training: bytes, validation: bytes, test: bytes) -> Report:
    """Bits per byte on test and validation text, beside unigram and bigram counts of the training text."""
    pairs = _bigram_counts(training)
    return {
        "test": _text_figures(cell, text_sequences(test), pairs),
        "validation": _text_figures(cell, text_sequences(validation), pairs),
        **_solved(cell, text_sequences(validation)),
    }


def _judged(data: Dataset, cell: Model, steps: int, ranges: Sequence[tuple[int, int]], most: int) -> list[Judging]:
    longest, found = longest_call(cell.config, steps), []
    for part, (start, stop) in zip(data.parts, ranges, strict=True):
        if stop > start and np.any(part.series.labels[start:stop] >= 0):
            rows = np.arange(max(0, start - WARM_CALLS), stop)
            calls = calls_of(part.series, rows, data.time, longest, most)
            found.append(Judging(calls, int(np.flatnonzero(calls.rows >= start)[0])))
    return found


def _solved(cell: Model, judged: Sequence[Judging]) -> Report:
    """The solver gate, on so much of the validation part as takes seconds; nothing for a model without a solver."""
    if not isinstance(cell, Cell):
        return {}
    few = [Judging(j.calls.part(0, j.first + GATE_CALLS), j.first) for j in judged[:AT_ONCE]]
    few = [j for j in few if np.any(j.calls.labels[j.first :] >= 0)]

    def measure(steps: int | None, integrator: Integrator | None) -> float:
        return log_loss(score(cell, few, steps, integrator)) if few else float("nan")

    longest = max((float(np.max(j.calls.inputs["dt"])) for j in few), default=0.0)
    gate = solver_gate(cell, "validation cross-entropy, nats", longest, measure)
    return {"solver_gate": gate, "deployed_solver_steps": cell.config.steps}


def _score_some(cell: Model, judged: Sequence[Judging], steps: int | None, integrator: Integrator | None) -> Scored:
    inputs, state = stack([j.calls for j in judged]), cell.initial_state(len(judged))
    pieces = []
    for start in range(0, len(inputs["dt"]), CALLS_AT_ONCE):
        now = {name: value[start : start + CALLS_AT_ONCE] for name, value in inputs.items()}
        unrolled = unroll(cell, now, state, steps=steps, integrator=integrator)
        state = unrolled.state
        pieces.append(F.log_softmax(unrolled.y, dim=-1))
    y = torch.cat(pieces).double().numpy()
    places = [j.first + np.flatnonzero(j.calls.labels[j.first :] >= 0) for j in judged]
    return Scored(
        np.concatenate([y[p, i] for i, p in enumerate(places)]),
        np.concatenate([j.calls.labels[p] for j, p in zip(judged, places, strict=True)]),
        np.concatenate([p == p.max(initial=-1) for p in places]),
    )


def _class_figures(cell: Model, judged: Sequence[Judging], counts: Rows) -> Report:
    if not judged:
        return {"count": 0}
    scored = score(cell, judged)
    right = scored.log_chances.argmax(axis=1) == scored.labels
    common = scored.labels == int(counts.argmax())
    chances = (counts + 1) / (counts + 1).sum()
    return {
        "count": len(right),
        "accuracy": float(right.mean()),
        "log_loss": log_loss(scored),
        "streams": len(judged),
        "accuracy_at_stream_end": float(right[scored.last].mean()),
        "rivals": {
            "majority_accuracy": float(common.mean()),
            "majority_accuracy_at_stream_end": float(common[scored.last].mean()),
            "class_frequencies_log_loss": float(-np.log(chances[scored.labels]).mean()),
        },
    }


def _text_figures(cell: Model, judged: Sequence[Judging], pairs: Floats) -> Report:
    scored = score(cell, judged)
    before = np.concatenate([np.asarray(j.calls.inputs["x"])[:-1] for j in judged]).astype(np.int64)
    single = (pairs.sum(axis=0) + 1.0) / (pairs.sum() + VOCABULARY)
    # Bigrams lean on unigrams where a byte was rarely seen (Witten-Bell weight, by the number of kinds that followed).
    seen, kinds = pairs.sum(axis=1, keepdims=True), np.maximum((pairs > 0).sum(axis=1, keepdims=True), 1)
    double = (pairs + kinds * single) / (seen + kinds)
    return {
        "count": len(scored.labels),
        "bits_per_byte": log_loss(scored) / float(np.log(2)),
        "rivals": {
            "unigram_bits_per_byte": float(-np.log2(single[scored.labels]).mean()),
            "bigram_bits_per_byte": float(-np.log2(double[before, scored.labels]).mean()),
        },
    }


def _bigram_counts(text: bytes) -> Floats:
    codes = np.frombuffer(text, np.uint8).astype(np.int64)
    counts = np.bincount(codes[:-1] * VOCABULARY + codes[1:], minlength=VOCABULARY * VOCABULARY)
    return counts.reshape(VOCABULARY, VOCABULARY).astype(np.float64)
