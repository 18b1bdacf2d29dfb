"""What the state of one stream holds, in figures and words.

Members are told apart by the names that odestream's cell gives them: strengths `ws` and `es` mark the filled places of
the working and of the episodic memory (0 is empty), `wa` and `ea` are their ages in model units, `m` is the long-term
matrix with one head for each place of its first axis. Other members are described by their figures alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from odestream.runtime.verbs.console import show_table

Member = NDArray[np.generic]
Members = Mapping[str, Member]


def describe_members(members: Members) -> list[dict[str, Any]]:
    """One entry a member, by name: shape, min, max, norm (Frobenius), and `holds`, what that means."""
    return [
        {
            "name": name,
            "shape": list(value.shape),
            "min": float(value.min()),
            "max": float(value.max()),
            "norm": float(np.linalg.norm(value.astype(np.float64))),
            "holds": _MEANINGS[name](name, members) if name in _MEANINGS else "",
        }
        for name, value in sorted(members.items())
    ]


def show_members(title: str, members: Iterable[Mapping[str, Any]]) -> None:
    """Print what `describe_members` found."""
    columns = ("member", "shape", "min", "max", "norm", "holds")
    rows = [
        (m["name"], str(list(m["shape"])), *(f"{m[key]:.4g}" for key in ("min", "max", "norm")), m["holds"])
        for m in members
    ]
    show_table(title, columns, rows, numbers=("min", "max", "norm"))


def _filled(name: str, members: Members) -> str:
    strengths = members[name].astype(np.float64)
    filled = strengths[strengths > 0]
    if not filled.size:
        return f"none of {strengths.size} places filled"
    return f"{filled.size} of {strengths.size} places filled, strengths {filled.min():.3g} to {filled.max():.3g}"


def _ages(name: str, members: Members) -> str:
    """Ages of filled places only; those of empty ones mean nothing."""
    strengths, ages = members.get(name[0] + "s"), members[name]
    known = ages if strengths is None or strengths.shape != ages.shape else ages[strengths.astype(np.float64) > 0]
    return f"ages {known.min():.3g} to {known.max():.3g} model units" if known.size else "no filled place"


def _heads(name: str, members: Members) -> str:
    heads = members[name].astype(np.float64)
    norms = [f"{np.linalg.norm(head):.3g}" for head in heads]
    return f"norm of {'the head' if len(norms) == 1 else 'each head'} {', '.join(norms)}"


_MEANINGS: dict[str, Callable[[str, Members], str]] = {
    "ws": _filled,
    "es": _filled,
    "wa": _ages,
    "ea": _ages,
    "m": _heads,
}
