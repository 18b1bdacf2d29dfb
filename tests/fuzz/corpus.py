"""Writes the committed corpus: `python tests/fuzz/corpus.py`; a few files that each format's writer makes."""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from odestream.runtime import Model, load
from odestream.runtime.fleet import Fleet, Observation
from odestream.runtime.inputlog import MAGIC as LOG_MAGIC
from odestream.runtime.policies import Policies
from odestream.runtime.recorder import Recorder, segment_paths
from odestream.runtime.snapshot import MAGIC
from tests.helpers.tiny_bundle import Tiny, write_tiny

CORPUS = Path(__file__).parent / "corpus"

TABLES = {
    "number": b"\x00time,id,a,b\n0,s,1,2\n0.5,t,,-3e4\n7,s,0.25,1\n",
    "iso": b"\x04time,a,kind\r\n2024-05-31,1,x\r\n2024-05-31T12:00:00.5+02:00,,\r\n",
    "steps": b'\x02a,"b,c"\n1,2\n,\n"3",4\n',
    "spoiled": b"\x00\xef\xbb\xbftime,id,a,b\n1e400,s,nan,\x00\n",
}


def main() -> None:
    """Write every file of the corpus anew."""
    with tempfile.TemporaryDirectory() as folder:
        whole, bare = (
            write_tiny(Path(folder) / name, tiny)
            for name, tiny in {"whole": Tiny(), "bare": Tiny(buckets=(), frequencies=(), gates=False)}.items()
        )
        with load(whole) as model:
            fresh, stepped = model.stream(), model.stream()
            stepped.step([1, 2, 3], 10**9)
            stepped.step([1, 2, 3], 2 * 10**9, [1, 0, 1])
            blob = model.snapshot_streams({"pump 1": fresh, "ä": stepped})
            segment = recorded(model, Path(folder) / "log")
        files = {
            "manifest": {path.name: (path / "manifest.json").read_bytes() for path in (whole, bare)},
            "snapshot": {
                "whole": b"\x01" + blob,
                "body": b"\x00" + blob[len(MAGIC) + 32 :],
                "cut": b"\x01" + blob[:99],
            },
            "table": TABLES,
            "log": {"whole": b"\x01" + segment, "frames": b"\x00" + b"|".join(frames(segment))},
        }
    for name, inputs in files.items():
        (CORPUS / name).mkdir(parents=True, exist_ok=True)
        for each, data in inputs.items():
            (CORPUS / name / each).write_bytes(data)


def recorded(model: Model, folder: Path) -> bytes:
    """A segment with every kind of frame."""
    model.bundle = replace(model.bundle, path=Path("/bundle"))
    recorder = Recorder(folder)
    fleet = Fleet(model, Policies(on_late="replay"), recorder=recorder)
    fleet.step([Observation("a", [1, 2, 3], 0), Observation("ä", [1, 2, 3], 5, [1, 0, 1])])
    fleet.continue_with(recorder)
    fleet.evict(["a"])
    fleet.step([Observation("a", [1, 2, 3], 10**9)])
    fleet.close()
    return segment_paths(folder)[-1].read_bytes()


def frames(segment: bytes) -> list[bytes]:
    """The payloads of a segment's frames."""
    at, found = len(LOG_MAGIC), []
    while at < len(segment):
        length = int.from_bytes(segment[at : at + 4], "little")
        found.append(segment[at + 8 : at + 8 + length])
        at += 8 + length
    return found


if __name__ == "__main__":
    main()
