"""Broken and hostile files of every kind, made by code: headers, indexes, configurations, recipes, pickles, and things that are no files.

Run as a program it opens those that lines of its input name, `["model", PATH]` or `["recipe", PATH]`, and for each prints how that ended and
what it cost, as JSON.
"""

from __future__ import annotations

import collections
import io
import json
import os
import pickle
import socket
import struct
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MEGABYTE = 1_000_000
MOST_SECONDS = 1.0
MOST_BYTES = 200 * MEGABYTE


@dataclass(frozen=True)
class Case:
    """One bad thing.

    Attributes:
        make: puts it into a folder; gives the path to open.
        words: what the error must say.
        names: the file that it must name.
    """

    make: Callable[[Path], Path]
    words: str
    names: str = ""


def entry(begin: int, end: int, **changes: Any) -> dict[str, Any]:
    """The description of one tensor of bytes."""
    return {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end], **changes}


def container(header: object, data: bytes = b"", claimed: int | None = None) -> bytes:
    """A safetensors file of a header (text, or a value for JSON) and data; `claimed` is the length it states."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if claimed is None else claimed).to_bytes(8, "little") + text + data


GOOD = container({"a": entry(0, 2)}, b"12")


def _file(content: bytes, name: str = "model.safetensors", size: int | None = None) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        with open(folder / name, "wb") as stream:
            stream.write(content)
            if size is not None:
                stream.truncate(size)  # sparse: takes no room
        return folder

    return make


def _append(folder: Path, content: bytes) -> Path:
    with open(folder / "model.bin", "ab") as stream:
        stream.write(content)
    return folder


def _header(header: object, data: bytes = b"", claimed: int | None = None, size: int | None = None) -> Callable[[Path], Path]:
    return lambda folder: _file(container(header, data, claimed), size=size)(folder)


def _rows(count: int, text: Callable[[int], str], **more: Any) -> Callable[[Path], Path]:
    """A header of many entries, made when it is asked for; the file is as long as they say."""

    def make(folder: Path) -> Path:
        raw = ("{" + ",".join(map(text, range(count))) + "}").encode()
        return _file(container(raw), size=8 + len(raw) + more.get("data", count))(folder)

    return make


def _tensor(i: int, at: int | None = None, dtype: str = "U8") -> str:
    at = i if at is None else at
    return f'"t{i}":{{"dtype":"{dtype}","shape":[1],"data_offsets":[{at},{at + 1}]}}'


HEADERS = {
    "length of exabytes": Case(_file((2**63 - 1).to_bytes(8, "little") + b"{}"), "claims a header of 9223372036854775807 bytes"),
    "length of 2^64 - 1": Case(_file(b"\xff" * 8 + b"{}"), "claims a header of"),
    "length beyond the file": Case(_header({"a": entry(0, 1)}, b"1", claimed=4096), "its header alone would take 4.1 kB"),
    "length zero": Case(_file(bytes(8)), "not valid JSON"),
    "name twice": Case(
        _header(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"1"), "'a' twice"
    ),
    "key twice": Case(_header(b'{"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}', b"1"), "'dtype' twice"),
    "overlap": Case(_header({"a": entry(0, 2), "b": entry(1, 3)}, b"123"), "'b' overlaps 'a'"),
    "hole": Case(_header({"a": entry(0, 1), "b": entry(2, 3)}, b"123"), "leaves a hole of 1 bytes"),
    "offsets out of range": Case(_header({"a": entry(0, 100)}, b"123"), "97 bytes are missing"),
    "offsets beyond 64 bits": Case(_header({"a": entry(2**64, 2**64 + 1)}, b"1"), "overflows 64 bits"),
    "offsets reversed": Case(_header({"a": entry(0, 3, data_offsets=[3, 0])}, b"123"), "takes -3 bytes"),
    "negative offset": Case(_header({"a": entry(0, 3, data_offsets=[-3, 0])}, b"123"), "offsets that are not lists of whole numbers"),
    "unknown dtype": Case(_header({"a": entry(0, 1, dtype="Q8")}, b"1"), "dtype 'Q8'"),
    "sub-byte dtype": Case(_header({"a": entry(0, 1, dtype="F4", shape=[2])}, b"1"), "packed below a byte"),
    "dtype with a terminal command": Case(_header({"a": entry(0, 1, dtype="\x1b[2J")}, b"1"), r"dtype '\\x1b\[2J'"),
    "shape and bytes differ": Case(_header({"a": entry(0, 3, shape=[4])}, b"123"), "takes 3 bytes but shape [4] in U8 needs 4"),
    "shape overflows": Case(_header({"a": entry(0, 0, shape=[2**62, 2**62])}), "overflows"),
    "shape wraps to the right size": Case(_header({"a": entry(0, 4, shape=[2**32, 2**32, 4])}, b"1234"), "overflows"),
    "shape of a thousand dimensions": Case(_header({"a": entry(0, 1, shape=[1] * 1000)}, b"1"), "shape"),
    "huge product": Case(_header({"a": entry(0, 1, shape=[2**62] * 64)}, b"1"), "overflows"),
    "NaN": Case(_header(b'{"a":{"dtype":"U8","shape":[NaN],"data_offsets":[0,1]}}', b"1"), "'NaN' where only whole numbers"),
    "minus zero": Case(_header(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[-0,1]}}', b"1"), "'-0' where only whole numbers"),
    "Infinity": Case(_header(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,-Infinity]}}', b"1"), "where only whole numbers"),
    "number of a million digits": Case(_header(b'{"a":{"dtype":"U8","shape":[' + b"9" * MEGABYTE + b'],"data_offsets":[0,1]}}', b"1"), "overflows 64 bits"),
    "nesting, dense": Case(_header(b'{"a":' + b"[" * MEGABYTE + b"]" * MEGABYTE + b"}"), "not a list of tensors"),
    "nesting, padded": Case(_header(b'{"a":' + b"[           " * 200_000 + b"]" * 200_000 + b"}"), "nested too deeply"),
    "nesting of objects": Case(_header(b'{"a":' + b'{"some longer name":' * 5000 + b"1" + b"}" * 5000 + b"}"), "nested too deeply"),
    "invalid UTF-8": Case(_header(b'{"a\xc3\x28":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"1"), "not UTF-8 at byte"),
    "surrogate bytes": Case(_header(b'{"a\xed\xa0\x80":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"1"), "not UTF-8 at byte"),
    "half a surrogate pair": Case(_header(b'{"\\ud800":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"1"), "control characters"),
    "UTF-16": Case(_header('{"a":{}}'.encode("utf-16")), "not UTF-8"),
    "climbing name": Case(_header({"../../.bashrc": entry(0, 1)}, b"1"), "climbing path"),
    "climbing name in the middle": Case(_header({"x/../../y": entry(0, 1)}, b"1"), "climbing path"),
    "absolute name": Case(_header({"/etc/passwd": entry(0, 1)}, b"1"), "climbing path"),
    "backslash name": Case(_header({"..\\..\\x": entry(0, 1)}, b"1"), "climbing path"),
    "NUL in a name": Case(_header({"a\0b": entry(0, 1)}, b"1"), "control characters"),
    "newline in a name": Case(_header({"a\nplait: all is well": entry(0, 1)}, b"1"), "control characters"),
    "right-to-left name": Case(_header({"a\u202eb": entry(0, 1)}, b"1"), "control characters"),
    "endless name": Case(_header({"n" * MEGABYTE: entry(0, 1)}, b"1"), "no sensible length"),
    "no tensors": Case(_header({}), "holds no tensors"),
    "metadata of objects": Case(_header({"__metadata__": {"a": {"b": 1}}, "a": entry(0, 1)}, b"1"), "__metadata__"),
    "JSON in pieces": Case(_header(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}{}', b"1"), "not valid JSON"),
    "Git LFS pointer": Case(_file(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"), "git lfs pull"),
    "pickle under the name": Case(_file(b"PK\x03\x04" + bytes(60)), "pickle"),
}
#: Those whose size is the attack: each is opened in a process of its own, and its memory is measured.
LARGE = {
    "10^6 tensors": Case(_rows(1_000_000, _tensor), "limit is 12000000"),
    "more tensors than read": Case(_rows(70_000, _tensor), "describes 70000 tensors, more than the 65536"),
    "empty tensors, a million": Case(lambda f: _header(b"{" + b'"":0,' * 2_000_000 + b'"a":0}')(f), "more than the 65536 tensors"),
    "dense objects": Case(lambda f: _header(b"[" + b"{},          " * 900_000 + b"{}]")(f), "more than the 65536 tensors"),
    "names and numbers": Case(_rows(300_000, lambda i: f'"{i:x}":{i + 1000},"b{i:x}":[{i + 1000}]   '), "more than the 65536"),
    "as many objects as are read": Case(
        lambda f: _header(b"[" + b",".join(b'{"a":%d}                                 ' % i for i in range(230_000)) + b"]")(f), "not a JSON object"
    ),
    "as many names as are read": Case(_rows(290_000, lambda i: f'"name{i:x}":{i + 1000}        ', data=1), "describes 290000 tensors"),
    "as many numbers as are read": Case(
        lambda f: _header(b'{"a":{"dtype":"U8","shape":[' + b",".join(b"%d" % (10**9 + i) for i in range(560_000)) + b'],"data_offsets":[0,1]}}', b"1")(f),
        "shape",
    ),
    "escapes throughout": Case(
        lambda f: _header(b'{"' + b"\\u0041" * 1_900_000 + b'":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"1")(f), "no sensible length"
    ),
    "wide characters": Case(lambda f: _header(('{"' + "\U0001f600" + "x" * 11_000_000 + '":{}}').encode())(f), "sensible length"),
    "last of many is wrong": Case(_rows(65_000, lambda i: _tensor(i, None, "U8" if i < 64_999 else "Q8")), "tensor 't64999' has dtype 'Q8'"),
    "many, and a name twice": Case(_rows(65_000, lambda i: _tensor(i).replace("t64999", "t64998")), "'t64998' twice"),
    "many in reverse, one over another": Case(_rows(65_000, lambda i: _tensor(i, max(0, 64_998 - i))), "overlaps"),
    "file of four terabytes": Case(_file(GOOD, size=1 << 42), "bytes after its last tensor"),
    "header of a sparse gigabyte": Case(_file((1 << 30).to_bytes(8, "little"), size=(1 << 30) + 8), "claims a header of 1073741824 bytes"),
    "header of zeros": Case(_file((11_000_000).to_bytes(8, "little"), size=11_000_008), "not valid JSON"),
    "header of spaces": Case(lambda f: _header(b" " * 11_900_000)(f), "not valid JSON"),
}


# -- indexes and folders ----------------------------------------------------------------------------
def _index(weight_map: object, raw: bytes | None = None, size: int | None = None) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "model-00001-of-00001.safetensors").write_bytes(GOOD)
        text = json.dumps({"metadata": {}, "weight_map": weight_map}).encode() if raw is None else raw
        return _file(text, "model.safetensors.index.json", size)(folder)

    return make


def _link(name: str, target: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder.parent / "secret.safetensors").write_bytes(GOOD)
        (folder / name).symlink_to(target)
        return folder

    return make


def _indexed_link(target: str) -> Callable[[Path], Path]:
    return lambda folder: (_index({"a": "model-1.safetensors"})(folder), _link("model-1.safetensors", target)(folder))[1]


def _large_index(count: int, text: Callable[[int], str]) -> Callable[[Path], Path]:
    return lambda folder: _index(None, b'{"weight_map":{' + ",".join(map(text, range(count))).encode() + b"}}")(folder)


_OWN = "may only name safetensors files of its own folder"
INDEX = "model.safetensors.index.json"
INDEXES = {
    "index climbs": Case(_index({"a": "../secret.safetensors"}), _OWN, INDEX),
    "index to an absolute path": Case(_index({"a": "/etc/model.safetensors"}), _OWN, INDEX),
    "index to itself": Case(_index({"a": INDEX}), _OWN, INDEX),
    "index to a folder below": Case(_index({"a": "x/y.safetensors"}), _OWN, INDEX),
    "index to a hidden file": Case(_index({"a": ".x.safetensors"}), _OWN, INDEX),
    "index with a newline": Case(_index({"a": "x\n.safetensors"}), _OWN, INDEX),
    "index to a pickle": Case(_index({"a": "pytorch_model.bin"}), _OWN, INDEX),
    "index to a number": Case(_index({"a": 7}), _OWN, INDEX),
    "index to a file that is absent": Case(_index({"a": "model-2.safetensors"}), "is not in the folder", "model-2.safetensors"),
    "index of a tensor that is absent": Case(
        _index({"a": "model-00001-of-00001.safetensors", "b": "model-00001-of-00001.safetensors"}), "no shard holds it", INDEX
    ),
    "index names a tensor twice": Case(
        _index(None, b'{"weight_map":{"a":"model-00001-of-00001.safetensors","a":"model-00001-of-00001.safetensors"}}'), "names 'a' twice", INDEX
    ),
    "index without a map": Case(_index([]), "holds no weight_map", INDEX),
    "index that is a list": Case(_index(None, b"[]"), "does not hold a JSON object", INDEX),
    "index nested deeply": Case(_index(None, b'{"weight_map":' + b"[" * 90_000 + b"]" * 90_000 + b"}"), "nested too deeply", INDEX),
    "index in UTF-16": Case(_index(None, '{"weight_map":{"a":"b"}}'.encode("utf-16")), "not valid UTF-8", INDEX),
    "index out through a link": Case(_indexed_link("../secret.safetensors"), "link out of its model folder", "model-1.safetensors"),
    "shard links to a device": Case(_indexed_link("/dev/zero"), "link out of its model folder", "model-1.safetensors"),
    "shard links to itself": Case(_indexed_link("model-1.safetensors"), "link that leads nowhere", "model-1.safetensors"),
    "shard links to the index": Case(_indexed_link(INDEX), "is truncated|claims a header", "model-1.safetensors"),
    "index links out": Case(_link(INDEX, "../secret.safetensors"), "link out of its model folder", INDEX),
    "model links out": Case(_link("model.safetensors", "../secret.safetensors"), "link out of its model folder", "model.safetensors"),
    "set of astronomically many files": Case(
        lambda folder: [_file(GOOD, f"m-{i}-of-{'9' * 200}.safetensors")(folder) for i in (1, 2)].pop(), "is absent from a set of 999"
    ),
    "file name with a terminal command": Case(_file(GOOD, "m\x1b[2J\n.safetensors"), "control characters: do not use this model"),
}
LARGE_INDEXES = {
    "index of a sparse gigabyte": Case(_index({}, size=1 << 30), "too many for the index", INDEX),
    "index of very many": Case(_large_index(600_000, lambda i: f'"{i:x}":"m.safetensors"'), "too many values for the index", INDEX),
    "index of as many as are read": Case(
        _large_index(200_000, lambda i: f'"model.layers.{i}":"model-{i % 5000}.safetensors"'), "is not in the folder", "model-0.safetensors"
    ),
    "index of very many files": Case(_large_index(200_000, lambda i: f'"model.layers.{i}":"model-{i}.safetensors"'), "names 200000 files", INDEX),
    "index of empty objects": Case(_large_index(1_500_000, lambda i: f'"{i:x}":{{}}'), "too many values for the index", INDEX),
}


def _config(content: bytes, size: int | None = None, name: str = "config.json") -> Callable[[Path], Path]:
    return lambda folder: (_file(GOOD)(folder), _file(content, name, size)(folder))[1]


CONFIGS = {
    "config in pieces": Case(_config(b'{"a": 1'), "not valid JSON", "config.json"),
    "config that is a list": Case(_config(b"[1]"), "does not hold a JSON object", "config.json"),
    "config nested deeply": Case(_config(b'{"a":' * 200 + b"1" + b"}" * 200), "nested too deeply", "config.json"),
    "config nested very deeply": Case(_config(b"[" * 250_000), "nested too deeply", "config.json"),
    "config with half a surrogate pair": Case(_config(b'{"a": "\\ud800"}'), "not valid UTF-8", "config.json"),
    "config in Latin-1": Case(_config('{"a": "é"}'.encode("latin-1")), "not valid UTF-8", "config.json"),
    "config with an endless number": Case(_config(b'{"a": ' + b"9" * MEGABYTE + b"}"), "not valid JSON", "config.json"),
    "config of a sparse gigabyte": Case(_config(b"{}", 1 << 30), "too many for the configuration", "config.json"),
    "config of very many values": Case(lambda f: _config(b'{"a":[' + b"[],[]," * 600_000 + b"[]]}")(f), "too many values for the configuration", "config.json"),
}


# -- what is no file --------------------------------------------------------------------------------
def _special(kind: str, name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / name
        if name != "model.safetensors":
            (folder / "model.safetensors").write_bytes(GOOD)
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "directory":
            path.mkdir()
        elif kind == "socket":
            here = os.getcwd()
            os.chdir(folder)  # the name of a socket has a short limit
            try:
                with socket.socket(socket.AF_UNIX) as bound:
                    bound.bind(name)
            finally:
                os.chdir(here)
        return path if name == "recipe.yml" else folder

    return make


_NO_FILE = {"fifo": "not a regular file", "directory": "not a regular file", "socket": "cannot be opened|not a regular file"}
SPECIAL = {
    f"{kind} for {name}": Case(_special(kind, name), words, name) for name in ("model.safetensors", INDEX, "config.json") for kind, words in _NO_FILE.items()
}
SPECIAL["a device itself"] = Case(lambda folder: Path("/dev/zero"), "not a safetensors file")
SPECIAL["a device as a file"] = Case(
    lambda folder: (_link("z.safetensors", "/dev/zero")(folder), folder / "z.safetensors")[1], "not a regular file", "z.safetensors"
)


# -- pickles ----------------------------------------------------------------------------------------
class Runs:
    """Pickles as a call of a function."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


def archive(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A ZIP as torch.save writes it."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", compression) as out:
        for name, content in members.items():
            out.writestr(name, content)
    return made.getvalue()


_EVIL = {"weights": Runs(os.system, "touch /tmp/plait-was-here")}
_TENSORS = pickle.dumps(collections.OrderedDict(a=1), 2)
#: A global that is put together from the memo and by string opcodes, as scanners are fooled.
_HIDDEN = b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x94000h\x00h\x01\x93\x8c\x02id\x85R."
PICKLES = {
    "plain pickle": Case(_file(pickle.dumps(_EVIL, 2), "pytorch_model.bin"), "calls for 'posix.system'", "pytorch_model.bin"),
    "plain pickle, text": Case(_file(pickle.dumps(_EVIL, 0), "model.pt"), "calls for 'posix.system'", "model.pt"),
    "plain pickle, protocol 4": Case(_file(pickle.dumps(_EVIL, 4), "model.pth"), "calls for 'posix.system'", "model.pth"),
    "pickle in an archive": Case(_file(archive({"m/data.pkl": pickle.dumps(_EVIL, 2), "m/data/0": b""}), "model.pt"), "calls for 'posix.system'", "model.pt"),
    "pickle with a hidden name": Case(_file(_HIDDEN, "model.pt"), "calls for 'posix.system'", "model.pt"),
    "pickle with a name made while loading": Case(_file(b"\x80\x04NN\x93.", "model.pt"), "a.name.made.while.loading", "model.pt"),
    "pickle of an extension": Case(_file(b"\x80\x02\x82\x07.", "model.pt"), "calls for 'extension.7'", "model.pt"),
    "pickle that ends early": Case(_file(pickle.dumps(_EVIL, 2)[:-20], "model.bin"), "calls for 'posix.system'", "model.bin"),
    "TorchScript": Case(_file(archive({"m/code/__torch__/x.py": b"def f(): pass", "m/data.pkl": _TENSORS}), "model.pt"), "holds code of its own", "model.pt"),
    "second pickle of an older file": Case(
        _file(pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps(_EVIL, 2), "model.bin"), "calls for 'posix.system'", "model.bin"
    ),
    "harmless pickle": Case(_file(_TENSORS, "model.bin"), "names nothing but tensors: convert it with", "model.bin"),
    "harmless archive": Case(_file(archive({"m/data.pkl": _TENSORS}), "model.bin"), "names nothing but tensors: convert it with", "model.bin"),
    "garbage under the name": Case(_file(b"\xde\xad\xbe\xef" * 10, "model.bin"), "cannot be looked through", "model.bin"),
    "archive of nothing": Case(_file(archive({}), "model.bin"), "holds no pickle", "model.bin"),
    "archive cut short": Case(_file(archive({"m/data.pkl": _TENSORS})[:-9], "model.bin"), "cannot be looked through", "model.bin"),
    "pickle fifo": Case(lambda f: (os.mkfifo(f / "model.bin"), f)[1], "not a regular file", "model.bin"),
}
LARGE_PICKLES = {
    "opcodes without end": Case(lambda f: _file(b"\x80\x02" + b"N0" * 10_000_000 + b".", "model.bin")(f), "the part of this one", "model.bin"),
    "compressed bomb": Case(
        lambda f: _file(archive({"m/data.pkl": b"\x80\x02" + b"N0" * 10_000_000 + b"."}, zipfile.ZIP_DEFLATED), "model.bin")(f),
        "the part of this one",
        "model.bin",
    ),
    "directory of a gigabyte": Case(
        lambda f: _append(_file(b"PK" + bytes(98), "model.bin", 1 << 30)(f), struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 9, 9, 1 << 30, 0, 0)),
        "directory is too large",
        "model.bin",
    ),
    "string of a sparse gigabyte": Case(
        _file(b"\x80\x04\x8d" + (1 << 30).to_bytes(8, "little"), "model.bin", 1 << 31), "cannot be looked through", "model.bin"
    ),
}


# -- recipes ----------------------------------------------------------------------------------------
def _recipe(content: bytes, size: int | None = None) -> Callable[[Path], Path]:
    return lambda folder: _file(content, "recipe.yml", size)(folder) / "recipe.yml"


_BOMB = b"a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + b"".join(b"a%d: &a%d [%s]\n" % (i, i, b",".join([b"*a%d" % (i - 1)] * 9)) for i in range(1, 30))
_HEAD = b"merge_method: linear\nmodels:\n"
RECIPES = {
    "alias bomb": Case(_recipe(_BOMB), r":\d+:\d+: aliases \(\*name\) make this more than"),
    "merge-key bomb": Case(
        _recipe(b"a: &a {%s}\nb: {<<: [%s]}\n" % (b",".join(b"k%d: 1" % i for i in range(900)), b",".join([b"*a"] * 900))), "make this more than"
    ),
    "alias to itself": Case(_recipe(b"models: &m [*m]\n"), "refers to the value that contains it"),
    "Python tag": Case(_recipe(b"models: !!python/object/apply:os.system ['id']\n"), r":1:9: the tag .*python.* is not allowed"),
    "Python name tag": Case(_recipe(b"models: !!python/name:os.system\n"), "is not allowed"),
    "local tag with a terminal command": Case(_recipe(b"models: !%1B%5B2J [1]\n"), r"the tag !\\x1b\[2J is not allowed"),
    "set tag": Case(_recipe(b"models: !!set {a, b}\n"), "the tag !!set is not allowed"),
    "binary tag": Case(_recipe(b"models: !!binary aGk=\n"), "is not allowed"),
    "flow nesting": Case(_recipe(b"[" * 100_000), "nested more than 64 deep"),
    "block nesting": Case(_recipe(b"- " * 100_000 + b"a"), "nested more than 64 deep"),
    "key nesting": Case(_recipe(b"? " * 100_000 + b"a"), "nested more than 64 deep"),
    "flow mappings": Case(_recipe(b"{a: " * 50_000), "nested more than 64 deep"),
    "very many values": Case(_recipe(b"[" + b"1," * 100_000 + b"1]"), "more than 10,000 values"),
    "very many lines": Case(_recipe(b"- a\n" * 65_000), "more than 10,000 values"),
    "very many problems": Case(_recipe(_HEAD + b"".join(b"  - model%d: x\n" % i for i in range(1500))), "unknown key 'model0'"),
    "number of base 60": Case(_recipe(b"density: " + b":".join([b"1"] * 100_000)), "is not a number"),
    "number without end": Case(_recipe(b"density: " + b"9" * 200_000), "is not a number"),
    "hexadecimal without end": Case(_recipe(b"density: 0x" + b"f" * 200_000), "is not a number"),
    "key without end": Case(_recipe(b"? " + b"k" * 200_000 + b"\n: 1\n"), "has more than 200 characters"),
    "method without end": Case(_recipe(b"merge_method: " + b"ties" * 50_000), "is too long"),
    "model without end": Case(_recipe(_HEAD + b"  - model: " + b"m" * 200_000 + b"\n    parameters: {weight: 1}\n"), "is too long"),
    "model with a terminal command": Case(
        _recipe(_HEAD + b'  - model: "\\e[2J"\n    parameters: {weight: 1}\n'), r"\\x1b\[2J' is too long or has control characters"
    ),
    "model of half a surrogate pair": Case(_recipe(_HEAD + b'  - model: "\\ud800"\n    parameters: {weight: 1}\n'), "control characters"),
    "one word": Case(_recipe(b"a" * 250_000), "a recipe is a mapping"),
    "newlines": Case(_recipe(b"\n" * 262_144), "is empty"),
    "comments": Case(_recipe(b"#" * 262_144), "is empty"),
    "escapes": Case(_recipe(b'"' + b"\\n" * 131_000 + b'"'), "a recipe is a mapping"),
    "sparse gigabyte": Case(_recipe(_HEAD, 1 << 30), "longer than 256 KiB"),
    "not text": Case(_recipe(b"\xff\xfe" + bytes(1000)), "not text in UTF-8"),
    "control characters": Case(_recipe(b"merge_method: \x07"), "not valid YAML"),
    "fifo for recipe.yml": Case(_special("fifo", "recipe.yml"), "not a regular file"),
    "directory for recipe.yml": Case(_special("directory", "recipe.yml"), "not a regular file"),
    "socket for recipe.yml": Case(_special("socket", "recipe.yml"), "cannot be opened|not a regular file"),
    "device for a recipe": Case(lambda folder: Path("/dev/zero"), "not a regular file", "/dev/zero"),
}

MODELS = {**HEADERS, **INDEXES, **CONFIGS, **SPECIAL, **PICKLES}
COSTLY = {**LARGE, **LARGE_INDEXES, **LARGE_PICKLES}


def opened(kind: str, path: Path) -> dict[str, Any]:
    """Open a bad thing: the error's class and message, and the processor time it took."""
    from plait.ops.errors import CheckpointError, RecipeError
    from plait.planner.checkpoint import open_checkpoint
    from plait.planner.recipe import load_recipe

    begun = time.process_time()
    try:
        open_checkpoint(path) if kind == "model" else load_recipe(path)
    except (CheckpointError, RecipeError) as error:
        return {"error": type(error).__name__, "message": str(error), "seconds": time.process_time() - begun}
    return {"error": None, "message": "it was opened", "seconds": time.process_time() - begun}


def main() -> None:
    """Open each one that standard input names, in a process of its own, and print what it cost beyond what importing plait costs.

    The processes are forked when plait is imported: importing it for each would take most of the time.
    """
    import plait.planner.checkpoint
    import plait.planner.recipe  # noqa: F401

    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            kind, path = json.loads(line)
            before = _peak()
            outcome = opened(kind, Path(path))
            print(json.dumps({**outcome, "bytes": _peak() - before}), flush=True)
            os._exit(0)
        status = os.waitpid(pid, 0)[1]
        if status:
            print(json.dumps({"error": None, "message": f"the process ended with status {status}"}), flush=True)


def _peak() -> int:
    """The most resident memory of this program so far; `ru_maxrss` would begin with that of the process that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


if __name__ == "__main__":
    main()
