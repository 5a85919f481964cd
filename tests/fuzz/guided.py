"""Coverage-guided fuzzing of headers and indexes with atheris; takes libFuzzer's options.

    pip install atheris && python tests/fuzz/guided.py -max_total_time=120

Begins with the seeds of `tests/fuzz/seeds` and writes what it learns into a folder of its own, which goes at the end.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["plait.planner"]):
    import plait.planner.checkpoint  # noqa: F401
sys.path.insert(0, str(Path(__file__).parents[1]))
from fuzz import headers


def main() -> None:
    """The command line."""
    folder = Path(tempfile.mkdtemp())
    check = headers.Check(folder)

    def one(data: bytes) -> None:
        if data[:1] == b"{":  # as an index, and as a header whose length is right
            check("index", data)
            check("header", len(data).to_bytes(8, "little") + data + bytes(64))
        else:
            check("header", data)

    corpus = folder / "corpus"
    corpus.mkdir()
    for name, content in headers.seeds().items():
        if name.endswith(".safetensors"):
            (corpus / name).write_bytes(content[8 : 8 + int.from_bytes(content[:8], "little")])
    try:
        atheris.Setup([sys.argv[0], "-rss_limit_mb=600", "-timeout=5", *sys.argv[1:], str(corpus), str(headers.SEEDS)], one)
        atheris.Fuzz()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
