"""Writes the committed corpus: `python tests/fuzz/corpus.py`; a few files that each format's writer makes."""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from odestream.runtime import load
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
        files = {
            "manifest": {path.name: (path / "manifest.json").read_bytes() for path in (whole, bare)},
            "snapshot": {
                "whole": b"\x01" + blob,
                "body": b"\x00" + blob[len(MAGIC) + 32 :],
                "cut": b"\x01" + blob[:99],
            },
            "table": TABLES,
        }
    for name, inputs in files.items():
        (CORPUS / name).mkdir(parents=True, exist_ok=True)
        for each, data in inputs.items():
            (CORPUS / name / each).write_bytes(data)


if __name__ == "__main__":
    main()
