"""`on_missing="hold"` for inputs that are no plain row of channels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from odestream.runtime import Output, load
from odestream.runtime.bundle import read_bundle
from odestream.runtime.contract.spec import TensorSpec
from odestream.runtime.fleet import Fleet, Observation
from odestream.runtime.policies import Filler, Policies
from tests.helpers.streams import same_state
from tests.helpers.tiny_bundle import Tiny, write_tiny

NAN = float("nan")


@pytest.mark.parametrize("names", ["a", "ab"])
def test_tokens_are_never_missing_and_hold_changes_nothing(names: str, tmp_path: Path) -> None:
    with load(write_tiny(tmp_path / "b", Tiny(tokens=True, frequencies=()))) as model:
        plain, holding = Fleet(model), Fleet(model, Policies(on_missing="hold"))
        for token in b"text":
            answers = [fleet.step([Observation(name, token) for name in names]) for fleet in (plain, holding)]
            for expected, found in zip(*answers, strict=True):
                assert isinstance(expected, Output)
                assert isinstance(found, Output)
                np.testing.assert_array_equal(found.y, expected.y)
        for name in names:
            assert same_state(holding.state(name), plain.state(name))  # type: ignore[arg-type]


def test_each_place_of_an_input_of_several_axes_holds_its_own_value(tiny_path: Path) -> None:
    manifest = read_bundle(tiny_path).manifest
    spec = replace(manifest.spec, inputs=(TensorSpec("x", (2, 3)), TensorSpec("mask", (2, 3))))
    filler = Filler(replace(manifest, spec=spec), "hold")
    filler.remember(*filler.fill(np.array([[1.0, 2.0, NAN], [4.0, 5.0, 6.0]]), None))
    assert filler.held == (1.0, 2.0, None, 4.0, 5.0, 6.0)
    x, mask = filler.fill(np.array([[NAN, 20.0, NAN], [NAN, NAN, 60.0]]), np.array([[1, 1, 1], [0, 1, 1]]))
    np.testing.assert_array_equal(x, [[1.0, 20.0, NAN], [NAN, 5.0, 60.0]])
    np.testing.assert_array_equal(mask, [[1, 1, 0], [0, 1, 1]])
    filler.remember(x, mask)
    assert filler.held == (1.0, 20.0, None, 4.0, 5.0, 60.0)
