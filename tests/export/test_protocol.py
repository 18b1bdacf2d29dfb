from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from odestream.export.protocol import check_module
from odestream.models.cell import Cell
from odestream.models.config import Task
from odestream.runtime.contract.spec import StepSpec, step_spec
from odestream.runtime.errors import CheckpointError, ExportError
from tests.export.conftest import CONFIGS
from tests.helpers.gru import Gru

Result = tuple[Any, Any]


class Leaky(nn.Module):
    """y = h' = (1 − a)·h + x, with one flaw that a test puts in."""

    def __init__(self, flaw: Callable[[Leaky, dict[str, Tensor], dict[str, Tensor]], Result] | None = None) -> None:
        super().__init__()
        self.leak = nn.Parameter(torch.tensor(0.1))
        self.register_buffer("seen", torch.zeros(3))
        self.flaw = flaw

    def spec(self) -> StepSpec:
        return step_spec({"x": (3,)}, {"y": (3,)}, {"h": (3,)})

    def step(self, inputs: dict[str, Tensor], state: dict[str, Tensor]) -> Result:
        if self.flaw is not None:
            return self.flaw(self, inputs, state)
        h = (1 - self.leak) * state["h"] + inputs["x"]
        return {"y": h}, {"h": h}


def good(inputs: dict[str, Tensor], state: dict[str, Tensor]) -> Result:
    h = 0.9 * state["h"] + inputs["x"]
    return {"y": h}, {"h": h}


def drops_state(_: Leaky, inputs: dict[str, Tensor], state: dict[str, Tensor]) -> Result:
    return good(inputs, state)[0], {}


def adds_state(_: Leaky, inputs: dict[str, Tensor], state: dict[str, Tensor]) -> Result:
    outputs, after = good(inputs, state)
    return outputs, {**after, "c": after["h"]}


def drops_output(_: Leaky, inputs: dict[str, Tensor], state: dict[str, Tensor]) -> Result:
    return {}, good(inputs, state)[1]


def wrong_shape(_: Leaky, inputs: dict[str, Tensor], state: dict[str, Tensor]) -> Result:
    outputs, after = good(inputs, state)
    return outputs, {"h": after["h"].unsqueeze(-1)}


def wrong_dtype(_: Leaky, inputs: dict[str, Tensor], state: dict[str, Tensor]) -> Result:
    outputs, after = good(inputs, state)
    return outputs, {"h": after["h"].double()}


def changes_state_in_place(_: Leaky, inputs: dict[str, Tensor], state: dict[str, Tensor]) -> Result:
    h = state["h"].mul_(0.9) + inputs["x"]
    return {"y": h}, {"h": h}


def changes_a_buffer(module: Leaky, inputs: dict[str, Tensor], state: dict[str, Tensor]) -> Result:
    module.get_buffer("seen").add_(1.0)
    return good(inputs, state)


def keeps_something(module: Leaky, inputs: dict[str, Tensor], state: dict[str, Tensor]) -> Result:
    module.count = getattr(module, "count", 0) + 1  # type: ignore[assignment]
    outputs, after = good(inputs, state)
    return {"y": outputs["y"] * module.count}, after


def is_noisy(_: Leaky, inputs: dict[str, Tensor], state: dict[str, Tensor]) -> Result:
    outputs, after = good(inputs, state)
    return {"y": outputs["y"] + torch.randn(3)}, after


def forgets_to_update(_: Leaky, inputs: dict[str, Tensor], state: dict[str, Tensor]) -> Result:
    return good(inputs, state)[0], dict(state)


def asks_for_more(_: Leaky, inputs: dict[str, Tensor], state: dict[str, Tensor]) -> Result:
    return good({"x": inputs["velocity"]}, state)


def returns_one_thing(_: Leaky, inputs: dict[str, Tensor], state: dict[str, Tensor]) -> Result:
    return good(inputs, state)[0]  # type: ignore[return-value]


def is_not_finite(_: Leaky, inputs: dict[str, Tensor], state: dict[str, Tensor]) -> Result:
    return {"y": torch.log(-torch.abs(inputs["x"]))}, good(inputs, state)[1]


@pytest.mark.parametrize(
    ("flaw", "says"),
    [
        (drops_state, r"state member 'h' is missing"),
        (adds_state, r"state member 'c' is not in spec"),
        (drops_output, r"output 'y' is missing"),
        (wrong_shape, r"state member 'h' is torch.float32 \[1, 3, 1\], expected float32 \[1, 3\]"),
        (wrong_dtype, r"state member 'h' is torch.float64"),
        (changes_state_in_place, r"'h' is changed in place"),
        (changes_a_buffer, r"'seen' is changed by the step"),
        (keeps_something, r"'y' differs between two equal calls"),
        (is_noisy, r"'y' differs between two equal calls"),
        (forgets_to_update, r"returns the state that it was given"),
        (asks_for_more, r"asks for 'velocity'"),
        (returns_one_thing, r"must return two dicts"),
        (is_not_finite, r"output 'y' is not finite"),
    ],
)
def test_a_step_that_breaks_the_protocol_is_refused_with_the_name_of_what_is_wrong(
    flaw: Callable[[Leaky, dict[str, Tensor], dict[str, Tensor]], Result], says: str
) -> None:
    with pytest.raises(ExportError, match=says):
        check_module(Leaky(flaw))


def test_a_step_that_holds_for_one_batch_size_only_is_refused() -> None:
    def bakes_in(_: Leaky, inputs: dict[str, Tensor], state: dict[str, Tensor]) -> Result:
        outputs, after = good(inputs, state)
        return {"y": outputs["y"].reshape(1, -1)}, after

    with pytest.raises(ExportError, match=r"output 'y' is torch.float32 \[1, 9\]"):
        check_module(Leaky(bakes_in))


def test_modules_that_follow_the_protocol_pass() -> None:
    assert check_module(Leaky()).state[0].name == "h"
    assert check_module(Gru()).state_bytes == 256


@pytest.mark.parametrize("task", CONFIGS)
def test_our_own_cell_passes(task: Task) -> None:
    cell = Cell(CONFIGS[task])
    assert check_module(cell) == cell.spec()


def test_what_is_no_step_module_is_refused() -> None:
    for thing in (nn.Linear(2, 2), object()):
        with pytest.raises(ExportError, match="does not follow the step protocol"):
            check_module(thing)


def test_a_spec_of_another_type_is_refused() -> None:
    module = Leaky()
    module.spec = lambda: {"x": 3}  # type: ignore[method-assign, assignment, return-value]
    with pytest.raises(ExportError, match="return a StepSpec"):
        check_module(module)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(value: float) -> None:
    module = Leaky()
    with torch.no_grad():
        module.leak.fill_(value)
    with pytest.raises(CheckpointError, match="leak holds NaN or infinity"):
        check_module(module)


def test_half_precision_weights_are_refused() -> None:
    with pytest.raises(ExportError, match=r"leak is torch.float16.*\.float\(\)"):
        check_module(Leaky().half())
