"""The Python standard library's own sources as bytes: read from the interpreter at hand, split by file."""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

LEFT_OUT = ("test", "tests", "site-packages", "dist-packages", "idlelib", "lib2to3")  # much alike, or not Python's own


@dataclass(frozen=True)
class Corpus:
    """training, validation: files one after another. tests: the beginnings of other files. sha256: of all of them."""

    training: bytes
    validation: bytes
    tests: tuple[bytes, ...]
    sha256: str


def corpus(training: int, validation: int, tests: int, length: int, folder: Path | None = None) -> Corpus:
    """So many bytes of training and validation text, and `tests` files of at least `length` bytes, cut there.

    folder: of the sources, the running interpreter's own unless given. No file is in two parts; their order is drawn
    from names alone, so that it is the same everywhere.
    """
    root = Path(sysconfig.get_path("stdlib")) if folder is None else folder
    sources = sorted(path.relative_to(root) for path in root.rglob("*.py"))
    names = [name for name in sources if not set(LEFT_OUT) & set(name.parts)]
    order = sorted(names, key=lambda name: hashlib.sha256(name.as_posix().encode()).digest())
    contents = [text for name in order if len(text := (root / name).read_bytes()) >= length]
    if len(contents) < tests + 2:
        raise ValueError(f"{root}: {len(contents)} sources of {length} bytes, expected at least {tests + 2}")
    tested, rest = contents[:tests], contents[tests:]
    judged, used = b"", 0
    while len(judged) < validation and used < len(rest) - 1:
        judged, used = judged + rest[used], used + 1
    parts = b"".join(rest[used:])[:training], judged[:validation], tuple(text[:length] for text in tested)
    digest = hashlib.sha256(b"".join((parts[0], parts[1], *parts[2]))).hexdigest()
    return Corpus(*parts, digest)


def repeats(text: bytes, length: int) -> NDArray[np.bool_]:
    """For each byte but the first: whether the `length` bytes that end with it stand somewhere before it in the text.

    length 2: a bigram that occurred before, which a memory of the text can know.
    """
    seen: set[bytes] = set()
    found = np.zeros(len(text) - 1, bool)
    for end in range(2, len(text) + 1):
        gram = text[max(0, end - length) : end]
        found[end - 2] = gram in seen
        if len(gram) == length:
            seen.add(gram)
    return found


def pooled(texts: Sequence[bytes], length: int) -> NDArray[np.bool_]:
    """`repeats` of several texts, one after another."""
    return np.concatenate([repeats(text, length) for text in texts])
