"""Classes and next bytes: what the cell should say after each call, and what it should have expected before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from odestream.models.cell import Cell
from odestream.models.config import VOCABULARY
from odestream.models.data import Dataset
from odestream.models.flow import Integrator
from odestream.models.labelling import Judging, log_loss, score, text_sequences, validation_sequences
from odestream.models.losses import absolute_error, cross_entropy, normalised, spread_loss
from odestream.models.sequences import Calls, calls_of, calls_of_bytes, longest_call, stack_labels, steps_across
from odestream.models.training.lanes import Chunk, LanePlan, Rows
from odestream.models.training.recipe import TRAINING_STEPS, Loss, Recipe
from odestream.models.unroll import Unrolled
from odestream.runtime.errors import InputError

EXPECT_WEIGHT = 0.1  # of the loss on what was expected of x, beside the labels
EXPLORE = 0.05  # share of writes that are forced, in the first half: what is never written gets no gradient
VALIDATION_TEXT = 1 << 14
WHOLE_STREAMS_UP_TO = 256  # calls that a chunk may have, so that a short stream is seen whole


class LabelRecipe(Recipe):
    """Cross-entropy of the labels, and the expectation's loss beside it."""

    def __init__(
        self,
        cell: Cell,
        sequences: Sequence[Calls],
        plan: LanePlan,
        judged: Sequence[Judging],
        integrator: Integrator | None,
        steps: int = TRAINING_STEPS,
    ) -> None:
        super().__init__(cell, sequences, plan, sum(len(s) for s in sequences), integrator, steps)
        self.judged = judged

    def judge(
        self,
        cell: Cell,
        chunk: Chunk,
        parts: Sequence[Calls],
        mine: Rows,
        inputs: Mapping[str, Tensor],
        unrolled: Unrolled,
        random: np.random.Generator,
    ) -> Loss:
        """Loss of the labels after each call, and of each observation before it."""
        del random
        length = self.lanes.plan.length
        labels = stack_labels(parts, length)
        weight = normalised((labels >= 0).float())[:, mine]
        main = cross_entropy(unrolled.y, labels[:, mine], weight)
        seen = _observed(parts, length)
        seen[0, chunk.start == 0] = 0.0  # nothing is known before a stream's first call
        expected = self._expectation(cell, inputs, unrolled, normalised(seen)[:, mine])
        return Loss(main + EXPECT_WEIGHT * expected, main)

    def validate(self, cell: Cell) -> float:
        """Mean −log p(label) on validation sequences, in nats."""
        return log_loss(score(cell, self.judged, self.steps)) if self.judged else float("nan")

    def explore(self, random: np.random.Generator, mine: Rows, progress: float) -> Tensor | None:
        """Some writes are forced in the first half of the training."""
        plan = self.lanes.plan
        forced = random.random((plan.length, plan.count, 1)) < (EXPLORE if progress < 0.5 else 0.0)
        return torch.from_numpy(forced[:, mine].astype(np.float32))

    def _expectation(self, cell: Cell, inputs: Mapping[str, Tensor], unrolled: Unrolled, weight: Tensor) -> Tensor:
        if unrolled.log_variance is None:
            return cross_entropy(unrolled.mean, inputs["x"], weight.squeeze(-1))
        error = absolute_error(unrolled.mean, inputs["x"], cell.scale, weight)
        return error + spread_loss(unrolled.mean, unrolled.log_variance, inputs["x"], cell.scale, weight)


def classify_recipe(cell: Cell, data: Dataset, lanes: int, length: int, integrator: Integrator | None) -> LabelRecipe:
    """Lanes through the fit rows of every labelled stream; streams that are short enough fit into one chunk."""
    longest = longest_call(cell.config, TRAINING_STEPS)
    parts = [p for p in data.parts if np.any(p.series.labels[: p.validation] >= 0)]
    if not parts:
        raise InputError("no labelled row is left to train on; label more rows, or give a smaller --test-fraction")
    sequences = [calls_of(p.series, np.arange(p.validation), data.time, longest) for p in parts]
    seen = np.concatenate([p.series.labels[: p.validation] for p in parts])
    start_at_frequencies(cell, np.bincount(seen[seen >= 0], minlength=len(data.task.labels)))
    most = max(len(s) for s in sequences)
    length = min(most, max(length, most if most <= WHOLE_STREAMS_UP_TO else 0))
    anywhere = all(p.validation < len(p.series.ticks) for p in parts)
    plan = LanePlan(lanes, length, 0.0, anywhere and most > length)
    return LabelRecipe(cell, sequences, plan, validation_sequences(data, cell, TRAINING_STEPS), integrator)


def tokens_recipe(
    cell: Cell, training: bytes, validation: bytes, lanes: int, length: int, integrator: Integrator | None
) -> LabelRecipe:
    """Lanes that begin anywhere in the text. A byte lasts a whole model unit, which takes several solver steps."""
    start_at_frequencies(cell, np.bincount(np.frombuffer(training, np.uint8), minlength=VOCABULARY))
    judged = text_sequences(validation[:VALIDATION_TEXT])
    sequences = [calls_of_bytes(training)]
    plan = LanePlan(lanes, min(length, len(training)), 1 / 50, anywhere=True)
    return LabelRecipe(cell, sequences, plan, judged, integrator, steps_across(cell.config, 1.0))


@torch.no_grad()
def start_at_frequencies(cell: Cell, counts: Rows) -> None:
    """Let the heads of logits start at how often each label was seen, one more for each: context is left to learn."""
    logits = torch.from_numpy(np.log((counts + 1.0) / (counts.sum() + len(counts)))).float()
    heads = (cell.heads.answer, cell.heads.expect if cell.embedding is not None else None)
    for head in heads:
        if head is not None:
            head.outer.bias.copy_(logits)


def _observed(parts: Sequence[Calls], length: int) -> Tensor:
    """Masks [T, N, X] of all lanes."""
    width = parts[0].inputs["mask"].shape[-1]
    masks = np.zeros((length, len(parts), width), np.float32)
    for lane, part in enumerate(parts):
        masks[: len(part), lane] = part.inputs["mask"]
    return torch.from_numpy(masks)
