"""Filling the results page, and the shape of the walk-forward comparison."""

import numpy as np
import pytest

from results import circumstances, fill_section, markdown_table
from walk_forward import load_record, rivals, score, thin

DOCUMENT = "# R\n<!-- a -->\nold\n<!-- /a -->\nbetween\n<!-- b -->\n<!-- /b -->\n"


def test_a_section_is_replaced_and_everything_else_stays() -> None:
    filled = fill_section(DOCUMENT, "a", r"new \1 text")
    assert filled == DOCUMENT.replace("old", r"new \1 text")
    assert fill_section(filled, "a", r"new \1 text") == filled
    assert fill_section(DOCUMENT, "b", "x") == DOCUMENT.replace("<!-- b -->\n", "<!-- b -->\nx\n")


@pytest.mark.parametrize("document", ["nothing", DOCUMENT + DOCUMENT])
def test_a_section_that_is_missing_or_there_twice_is_refused(document: str) -> None:
    with pytest.raises(ValueError, match="one section"):
        fill_section(document, "a", "text")


def test_a_table_sets_its_numbers_to_the_right() -> None:
    assert markdown_table(["", "x"], [["a", "1"]]) == "|  | x |\n| --- | ---: |\n| a | 1 |"


def test_circumstances_name_processor_versions_and_commit() -> None:
    found = circumstances()
    assert all(found[key] for key in ("processor", "cores", "python", "versions", "commit"))


def test_thinning_drops_half_of_the_test_rows_and_none_before_them() -> None:
    record = load_record()
    thinned = thin(record, 0.5, seed=1)
    before = thinned.ticks < record.first_tick
    assert before.sum() == record.first
    assert (~before).sum() == pytest.approx(0.5 * (len(record.series.ticks) - record.first), abs=40)


def test_rivals_are_scored_at_the_same_origins_and_survive_thinning() -> None:
    record = load_record()
    full = score(rivals(record), record, record.series)
    thinned = score(rivals(record), record, thin(record, 0.5, seed=1))
    np.testing.assert_allclose(full["last value"], [0.405, 1.109, 2.946, 3.779], atol=6e-4)
    np.testing.assert_allclose(full["ridge regression"], [0.283, 0.350, 0.419, 0.501], atol=0.012)
    for name, errors in thinned.items():
        np.testing.assert_allclose(errors, full[name], rtol=0.25)
