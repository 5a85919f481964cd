"""Mutated headers and indexes: each is opened or refused as a `CheckpointError`, soon, in little memory, and never read wrongly.

    python tests/fuzz/headers.py --count 1000000 --seed 7      # prints what happened, as JSON

The same seed and count give the same mutants. A mutant that breaks a promise is kept in `tests/fuzz/found/` and named.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import safetensors

from plait.ops.errors import CheckpointError
from plait.planner.checkpoint import open_checkpoint

SEEDS = Path(__file__).parent / "seeds"
MOST_SECONDS = 1.0
MOST_BYTES = 200_000_000
_NUMBERS = [0, 1, 2, 3, 4, 8, 255, 256, 2**31 - 1, 2**31, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64, 2**64 - 1, -1, 10**19, 10**30]
_PIECES = [
    b'"', b"[", b"]", b"{", b"}", b":", b",", b"\\", b"\\u0000", b"\\ud800", b"\x00", b"\xff", b"\xc3", b"\xed\xa0\x80", b" ", b"\n",
    b"NaN", b"1e5", b"-1", b"1.0", b"null", b"true", b"{}", b"[]", b'""', b'"dtype"', b'"shape"', b'"data_offsets"', b'"__metadata__"',
    b'"BF16"', b'"F4"', b'"U8"', b'"F64"', b'"I64"', b"../", b"/", b"\\u002e\\u002e/", b"model.safetensors",
    b"model-00001-of-00002.safetensors", b'"weight_map"', b'"metadata"', b"[[[[[[[[", b"]]]]]]]]", b'{"a":',
]  # fmt: skip


def seeds() -> dict[str, bytes]:
    """What mutants are made from: whole small files, headers and indexes, by name."""
    return {file.name: file.read_bytes() for file in sorted(SEEDS.iterdir())}


class Mutator:
    """Mutants of the seeds, drawn from a random generator; `next` gives the kind (`header` or `index`) and the file's bytes."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        held = seeds()
        self._headers = [content for name, content in held.items() if name.endswith(".safetensors")]
        self._indexes = [content for name, content in held.items() if name.endswith(".json")]
        self._ways: list[Callable[[bytearray], None]] = [
            self._flip, self._flip, self._put, self._put, self._cut, self._repeat, self._splice,
            self._number, self._number, self._number, self._nest, self._swap,
        ]  # fmt: skip

    def next(self) -> tuple[str, bytes]:
        draw = self.random
        if draw.random() < 0.25:
            text = bytearray(draw.choice(self._indexes))
            self._mutate(text)
            return "index", bytes(text)
        whole = draw.choice(self._headers)
        length = int.from_bytes(whole[:8], "little")
        if draw.random() < 0.1:  # anything, the length and the data too
            content = bytearray(whole)
            self._mutate(content)
            return "header", bytes(content)
        text = bytearray(whole[8 : 8 + length])
        self._mutate(text)
        data = whole[8 + length :]
        if draw.random() < 0.2:
            data = bytes(draw.choice((0, 1, len(data) + 1, draw.randrange(200))))
        return "header", len(text).to_bytes(8, "little") + bytes(text) + data

    def _mutate(self, text: bytearray) -> None:
        for _ in range(self.random.choice((1, 1, 1, 2, 2, 3, 5))):
            if text:
                self.random.choice(self._ways)(text)

    def _span(self, text: bytearray) -> tuple[int, int]:
        begin = self.random.randrange(len(text))
        return begin, min(len(text), begin + self.random.choice((1, 2, 4, 8, 16, 64)))

    def _flip(self, text: bytearray) -> None:
        text[self.random.randrange(len(text))] ^= 1 << self.random.randrange(8)

    def _put(self, text: bytearray) -> None:
        begin, end = self._span(text)
        text[begin : self.random.choice((begin, end))] = self.random.choice(_PIECES)

    def _cut(self, text: bytearray) -> None:
        begin, end = self._span(text)
        del text[begin : self.random.choice((end, end, len(text)))]

    def _repeat(self, text: bytearray) -> None:
        begin, end = self._span(text)
        text[begin:begin] = text[begin:end] * self.random.choice((1, 1, 2, 50, 2000))

    def _splice(self, text: bytearray) -> None:
        other = self.random.choice(self.random.choice((self._headers, self._indexes)))
        begin = self.random.randrange(len(other))
        at = self.random.randrange(len(text))
        text[at : at + self.random.choice((0, 40))] = other[begin : begin + self.random.choice((8, 40, 200))]

    def _number(self, text: bytearray) -> None:
        digits = [i for i, byte in enumerate(text) if 48 <= byte <= 57]
        if digits:
            at = self.random.choice(digits)
            end = at
            while end < len(text) and 48 <= text[end] <= 57:
                end += 1
            old = int(text[at:end][:30])
            text[at:end] = str(self.random.choice((*_NUMBERS, old + 1, max(0, old - 1), old * 2))).encode()

    def _nest(self, text: bytearray) -> None:
        begin, end = self._span(text)
        depth = self.random.choice((1, 2, 50, 300, 3000))
        opening, closing = self.random.choice(((b"[", b"]"), (b'{"a":', b"}"), (b"[            ", b"]")))
        text[begin:end] = opening * depth + text[begin:end] + closing * depth

    def _swap(self, text: bytearray) -> None:
        (a, b), (c, d) = sorted((self._span(text), self._span(text)))
        if b <= c:
            text[a:d] = text[c:d] + text[b:c] + text[a:b]


class Check:
    """Opens mutants in a folder and holds the parser to its promises; counts how they ended."""

    def __init__(self, folder: Path) -> None:
        self.ends: Counter[str] = Counter()
        self.slowest_s = 0.0
        self._header = folder / "mutant.safetensors"
        self._indexed = folder / "indexed"
        self._indexed.mkdir()
        for name, content in seeds().items():
            if name.startswith("model-"):
                (self._indexed / name).write_bytes(content)

    def __call__(self, kind: str, content: bytes) -> None:
        """One mutant.

        Raises:
            AssertionError: the error says too little or too much, it took too long, or it was read otherwise than safetensors reads it.
        """
        path = self._header if kind == "header" else self._indexed / "model.safetensors.index.json"
        path.write_bytes(content)
        begun = time.process_time()
        try:
            opened = open_checkpoint(path)
        except CheckpointError as error:
            self.ends[f"{kind} refused"] += 1
            message = error.message
            assert message.isprintable(), ascii(message)
            assert str(path.parent) in message, ascii(message)
            assert len(message) < 2000
        else:
            self.ends[f"{kind} opened"] += 1
            if kind == "header":
                with safetensors.safe_open(path, "np") as reference:
                    names = reference.keys()
                    assert {n: list(t.shape) for n, t in opened.tensors.items()} == {n: reference.get_slice(n).get_shape() for n in names}
        took = time.process_time() - begun
        self.slowest_s = max(self.slowest_s, took)
        assert took < MOST_SECONDS, f"took {took:.2f} s"


def run(seed: int, count: int, check: Check) -> None:
    """`count` mutants of one seed.

    Raises:
        AssertionError: as `Check`; whatever else is raised was raised by the parser, which is a fault too.
    """
    mutator = Mutator(seed)
    for number in range(count):
        kind, content = mutator.next()
        try:
            check(kind, content)
        except BaseException as error:
            found = Path(__file__).parent / "found"
            found.mkdir(exist_ok=True)
            kept = found / f"{kind}-{seed}-{number}"
            kept.write_bytes(content)
            error.add_note(f"mutant {number} of seed {seed}, kept as {kept}") if hasattr(error, "add_note") else print(f"kept as {kept}", file=sys.stderr)
            raise


def peak_bytes() -> int:
    """The most resident memory of this process so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        check = Check(Path(folder))
        run(asked.seed, 100, check)  # what importing costs is no mutant's
        before, begun = peak_bytes(), time.process_time()
        run(asked.seed, asked.count, check)
        spent = time.process_time() - begun
    print(json.dumps({**check.ends, "slowest_s": round(check.slowest_s, 3), "cpu_s": round(spent, 1), "bytes": peak_bytes() - before}))


if __name__ == "__main__":
    main()
