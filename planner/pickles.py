"""What a PyTorch pickle would call if it were loaded; found by reading its opcodes, never by loading it.

A `.bin` or `.pt` file is a program for the pickle machine: loading it may run anything. plait refuses
all of them, and says whether this one calls for more than tensors are made of. Three forms are known:
the archive of torch >= 1.6 (a ZIP with `data.pkl`; with `code/`, TorchScript), the older row of pickles
in one file, and a plain pickle. Bytes, opcodes and archive entries that are looked at are bounded.
"""

from __future__ import annotations

import io
import os
import re
from typing import BinaryIO

from plait.planner.header_text import shown
from plait.planner.safetensors_header import open_regular

MAX_PICKLE_BYTES = 4_000_000
MAX_OPCODES = 100_000
MAX_DIRECTORY_BYTES = 2_000_000

_CODE = "load it nowhere, and ask its author for safetensors"
_CONVERT = "convert it with `safetensors.torch.save_file(torch.load(FILE, weights_only=True), NEW_FILE)`, in a place you can throw away"
_LEGACY_PICKLES = 5  # magic number, protocol, system, the object, storage keys; raw storages follow
# What torch.load(weights_only=True) needs for tensors and nothing else.
_HARMLESS = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor(_v[23])?|parameter(_with_state)?|qtensor|sparse_tensor)|torch\.nn\.parameter Parameter"
    r"|torch\.serialization _get_layout|torch\.storage \w+Storage|torch (Size|\w+Storage|b?float\d+\w*|u?int\d+|complex\d+|bool|device|Tensor)"
)


class _Budget:
    """A file that no single read takes more than `MAX_DIRECTORY_BYTES` of: the directory of a ZIP is read in one piece."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.seek, self.tell, self.seekable = stream.seek, stream.tell, stream.seekable

    def read(self, count: int = -1) -> bytes:
        content = self._stream.read(MAX_DIRECTORY_BYTES + 1 if count < 0 else min(count, MAX_DIRECTORY_BYTES + 1))
        if len(content) > MAX_DIRECTORY_BYTES:
            raise ValueError("its directory is too large")
        return content


class _Scan:
    """The globals that pickles name, in the order in which they are met."""

    def __init__(self) -> None:
        self.offending: list[str] = []
        self.whole = True
        self._left = MAX_OPCODES

    def pickle(self, stream: BinaryIO) -> None:
        """One pickle, up to its STOP.

        Raises:
            ValueError: it is not one to its end.
        """
        import pickletools

        strings: list[str | None] = []  # what the stack's texts are, as far as STACK_GLOBAL can be told
        memo: dict[int, str | None] = {}
        for opcode, arg, _ in pickletools.genops(stream):
            self._left -= 1
            if self._left < 0:
                self.whole = False
                return
            name = opcode.name
            if "UNICODE" in name or "STRING" in name:
                strings.append(str(arg))
            elif name == "MEMOIZE":
                memo[len(memo)] = strings[-1] if strings else None
            elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
                memo[int(str(arg))] = strings[-1] if strings else None
            elif name in ("GET", "BINGET", "LONG_BINGET"):
                strings.append(memo.get(int(str(arg))))
            elif name in ("GLOBAL", "INST"):
                self._named(str(arg))
            elif name == "STACK_GLOBAL":
                module, inner = strings[-2:] if len(strings) > 1 else (None, None)
                self._named(f"{module} {inner}" if module is not None and inner is not None else "a name made while loading")
            elif name.startswith("EXT"):
                self._named(f"extension {arg}")

    def _named(self, name: str) -> None:
        if not _HARMLESS.fullmatch(name) and name not in self.offending and len(self.offending) < 1000:
            self.offending.append(name)


def describe(path: str | os.PathLike[str]) -> str:
    """The second half of a sentence that refuses the pickle `path`: what it would call, and what to do instead.

    Raises:
        CheckpointError: the file cannot be opened or is no regular file.
    """
    name = shown(os.path.basename(path))
    scan, damage = _Scan(), ""
    fd, _ = open_regular(os.fspath(path))
    with open(fd, "rb") as stream:
        try:
            _look(stream, scan)
        except Exception as error:  # whatever the parsers of the standard library stumble over, the file is refused
            damage = " ".join(str(error).split())[:100] or type(error).__name__
    if scan.offending and scan.offending[0].startswith("code "):
        return f"{name} holds code of its own ({shown(scan.offending[0][5:])}): {_CODE}"
    if scan.offending:
        more = f" and {len(scan.offending) - 1} more" if len(scan.offending) > 1 else ""
        return f"{name} is a pickle that calls for {shown(scan.offending[0].replace(' ', '.'))}{more} when it is loaded: {_CODE}"
    if damage:
        return f"{name} may run code when it is loaded, and cannot be looked through ({ascii(damage)[1:-1]}): {_CODE}"
    seen = "this one names nothing but tensors" if scan.whole else "the part of this one that was looked at names nothing but tensors"
    return f"{name} is a pickle, which may run code when it is loaded, and plait loads none; {seen}: {_CONVERT}"


def _look(stream: BinaryIO, scan: _Scan) -> None:
    start = stream.read(2)
    stream.seek(0)
    if start == b"PK":
        _look_into_archive(stream, scan)
        return
    head = io.BytesIO(stream.read(MAX_PICKLE_BYTES))
    scan.pickle(head)
    legacy = b"\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19" in head.getbuffer()[:32].tobytes()
    for _ in range(_LEGACY_PICKLES - 1 if legacy else 0):
        scan.pickle(head)


def _look_into_archive(stream: BinaryIO, scan: _Scan) -> None:
    import zipfile

    with zipfile.ZipFile(_Budget(stream)) as archive:
        names = archive.namelist()
        code = next((n for n in names if "/code/" in n or n.endswith(".py")), None)
        if code is not None:
            scan.offending.append(f"code {code}")
        pickles = [n for n in names if n.endswith(".pkl")]
        if not pickles:
            raise ValueError("it holds no pickle")
        for name in pickles[:_LEGACY_PICKLES]:
            with archive.open(name) as member:
                content = member.read(MAX_PICKLE_BYTES + 1)
            scan.whole &= len(content) <= MAX_PICKLE_BYTES and len(pickles) <= _LEGACY_PICKLES
            scan.pickle(io.BytesIO(content))
