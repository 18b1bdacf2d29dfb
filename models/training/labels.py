"""Classes and next bytes: what the cell should say after each call, and what it should have expected before it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from odestream.models.baselines import Baseline
from odestream.models.config import VOCABULARY
from odestream.models.data import Dataset
from odestream.models.labelling import Judging, log_loss, score, text_sequences, validation_sequences
from odestream.models.losses import absolute_error, cross_entropy, normalised, spread_loss
from odestream.models.model import Model
from odestream.models.sequences import Calls, calls_of, calls_of_bytes, longest_call, stack_labels, steps_across
from odestream.models.training.lanes import LanePlan, Rows
from odestream.models.training.recipe import FEWEST_STEPS, Batch, Loss, Recipe
from odestream.models.training.regularity import Flows, Solving
from odestream.models.unrolled import Unrolled
from odestream.runtime.errors import InputError

EXPECT_WEIGHT = 0.1  # of the loss on what was expected of x, beside the labels
FLOWS = 4  # of a lane and chunk, of which regularity is asked
EXPLORE = 0.05  # share of writes that are forced, in the first half: what is never written gets no gradient
VALIDATION_TEXT = 1 << 14
WHOLE_STREAMS_UP_TO = 256  # calls that a chunk may have, so that a short stream is seen whole


class LabelRecipe(Recipe):
    """Cross-entropy of the labels, and the expectation's loss beside it."""

    keep = ("h", "u")

    def __init__(
        self,
        cell: Model,
        sequences: Sequence[Calls],
        plan: LanePlan,
        judged: Sequence[Judging],
        solving: Solving,
        steps: int = FEWEST_STEPS,
    ) -> None:
        super().__init__(cell, sequences, plan, sum(len(s) for s in sequences), solving, steps)
        self.judged = judged

    def judge(
        self, cell: Model, batch: Batch, unrolled: Unrolled, random: np.random.Generator
    ) -> tuple[Loss, Flows | None]:
        """Loss of the labels after each call, and of each observation before it."""
        length, mine = self.lanes.plan.length, batch.mine
        labels = stack_labels(batch.parts, length)
        weight = normalised((labels >= 0).float())[:, mine]
        main = cross_entropy(unrolled.y, labels[:, mine], weight)
        seen = _observed(batch.parts, length)
        seen[0, batch.chunk.start == 0] = 0.0  # nothing is known before a stream's first call
        expected = self._expectation(cell, batch, unrolled, normalised(seen)[:, mine])
        flows = None if isinstance(cell, Baseline) else self._sample(batch, unrolled, random)
        return Loss(main + EXPECT_WEIGHT * expected, main), flows

    def validate(self, cell: Model) -> float:
        """Mean −log p(label) on validation sequences, in nats."""
        return log_loss(score(cell, self.judged, self.buckets[0])) if self.judged else float("nan")

    def explore(self, random: np.random.Generator, mine: Rows, progress: float) -> Tensor | None:
        """Some writes are forced in the first half of the training."""
        plan = self.lanes.plan
        forced = random.random((plan.length, plan.count, 1)) < (EXPLORE if progress < 0.5 else 0.0)
        return torch.from_numpy(forced[:, mine].astype(np.float32))

    def _sample(self, batch: Batch, unrolled: Unrolled, random: np.random.Generator) -> Flows:
        """Some of the chunk's own flows: from the state after a random call, over the gap to the next one."""
        last = np.array([len(part) - 1 for part in batch.parts])
        call = random.integers(0, np.maximum(last, 1)[:, None], (len(last), FLOWS))
        places = np.arange(call.size).reshape(call.shape)[batch.mine].ravel()
        begin = torch.from_numpy(call[batch.mine].ravel())
        lane = torch.arange(len(batch.mine)).repeat_interleave(FLOWS)
        end = torch.clamp(begin + 1, max=self.lanes.plan.length - 1)
        h, u = (unrolled.kept[name][begin, lane].detach() for name in self.keep)
        phase = batch.inputs.get("phase")
        gaps = batch.inputs["dt"][end, lane]
        return Flows(h, u, None if phase is None else phase[end, lane], gaps, places, call.size)

    def _expectation(self, cell: Model, batch: Batch, unrolled: Unrolled, weight: Tensor) -> Tensor:
        x = batch.inputs["x"]
        if unrolled.log_variance is None:
            return cross_entropy(unrolled.mean, x, weight.squeeze(-1))
        error = absolute_error(unrolled.mean, x, cell.scale, weight)
        return error + spread_loss(unrolled.mean, unrolled.log_variance, x, cell.scale, weight)


def classify_recipe(cell: Model, data: Dataset, lanes: int, length: int, solving: Solving) -> LabelRecipe:
    """Lanes through the fit rows of every labelled stream; streams that are short enough fit into one chunk."""
    longest = longest_call(cell.config, FEWEST_STEPS)
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
    return LabelRecipe(cell, sequences, plan, validation_sequences(data, cell, FEWEST_STEPS), solving)


def tokens_recipe(
    cell: Model, training: bytes, validation: bytes, lanes: int, length: int, solving: Solving
) -> LabelRecipe:
    """Lanes that begin anywhere in the text. A byte lasts a whole model unit, which takes several solver steps."""
    start_at_frequencies(cell, np.bincount(np.frombuffer(training, np.uint8), minlength=VOCABULARY))
    judged = text_sequences(validation[:VALIDATION_TEXT])
    sequences = [calls_of_bytes(training)]
    plan = LanePlan(lanes, min(length, len(training)), 1 / 50, anywhere=True)
    return LabelRecipe(cell, sequences, plan, judged, solving, steps_across(cell.config, 1.0))


@torch.no_grad()
def start_at_frequencies(cell: Model, counts: Rows) -> None:
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
