"""A PEFT adapter folder, written as its tensors come: their ranks are known only when they are computed.

`adapter_model.safetensors` begins with a header that says where every tensor lies. Room for it is left at the start, enough
for the most that it can take, and it is written last, padded with spaces as the format allows.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from plait.engine.publish import (
    DestinationLock,
    check_destination,
    drop_replaced,
    finish_folder,
    output_errors,
    place_folder,
    recover_old,
    remove_working,
    replace_folder,
    sync_folder,
    working_folder,
)
from plait.planner.types import SideFile

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PARTIAL = "adapter.partial"
_ENTRY_BYTES, _ALIGNMENT = 200, 4096


class AdapterFolder:
    """An adapter folder that appears whole or not at all; a context manager that removes what was not published.

    Args:
        destination: folder to make; must not exist or be empty, unless `overwrite` and it holds a model or adapter.
        names: of all tensors that may come, to leave room for the header.
        inputs: folders and files of the models, which the destination must not touch.
        overwrite: replace what is there, at the end.
    """

    def __init__(self, destination: Path, names: Sequence[str], inputs: Sequence[str] = (), *, overwrite: bool = False) -> None:
        """Touch nothing yet."""
        self.destination = Path(os.path.realpath(Path(destination).expanduser()))
        self.working = working_folder(self.destination)
        self._inputs, self._overwrite = tuple(inputs), overwrite
        room = 1000 + sum(_ENTRY_BYTES + 6 * len(name) for name in names)
        self._room = -(-room // _ALIGNMENT) * _ALIGNMENT
        self._header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        self._at = 0
        self._lock = DestinationLock(self.destination)
        self._fd: int | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of tensors so far."""
        return self._at

    def __enter__(self) -> AdapterFolder:
        """Check the destination, lock it and open the file.

        Raises:
            OutputError: the destination cannot take the result; nothing is left behind.
        """
        check_destination(self.destination, self._inputs, overwrite=self._overwrite)
        with output_errors(self.destination.parent, "create this folder"):
            self.destination.parent.mkdir(parents=True, exist_ok=True)
        self._lock.acquire()
        try:
            recover_old(self.destination)
            check_destination(self.destination, self._inputs, overwrite=self._overwrite)
            remove_working(self.working)
            with output_errors(self.working, "create the working folder"):
                os.mkdir(self.working)
                self._fd = os.open(self.working / _PARTIAL, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Drop what was not published."""
        try:
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None
                remove_working(self.working)
        finally:
            self._lock.release()

    def begin(self, name: str, dtype: str, shape: Sequence[int], nbytes: int) -> None:
        """Announce a tensor, whose bytes follow by `append`. Tensors come by descending element size, so that all are aligned."""
        self._header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [self._at, self._at + nbytes]}

    def append(self, data: npt.NDArray[Any]) -> None:
        """The next contiguous bytes of the tensor that was announced.

        Raises:
            OutputError: the disk is full or fails.
        """
        view = np.ascontiguousarray(data).reshape(-1).view(np.uint8).data
        self._write(view, 8 + self._room + self._at)
        self._at += view.nbytes

    def add(self, name: str, dtype: str, data: npt.NDArray[Any], shape: Sequence[int] | None = None) -> None:
        """A whole tensor at once."""
        self.begin(name, dtype, data.shape if shape is None else shape, data.nbytes)
        self.append(data)

    def publish(self, config: dict[str, Any]) -> None:
        """Write header and config, make all durable, and put the folder in its place in one rename.

        Raises:
            OutputError: a step failed. If only the last one did, the whole result is kept where the message says.
        """
        text = json.dumps(self._header, ensure_ascii=True, separators=(",", ":")).encode()
        if len(text) > self._room:
            raise AssertionError(f"a header of {len(text)} bytes in room for {self._room}")
        self._write(memoryview(self._room.to_bytes(8, "little") + text.ljust(self._room)), 0)
        fd = self._fd
        if fd is None:
            raise ValueError("the adapter folder is not open")
        with output_errors(self.working, "flush the weights to disk"):
            os.fsync(fd)
        os.close(fd)
        self._fd = None
        side = SideFile(CONFIG, (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode())
        finish_folder(self.working, {_PARTIAL: WEIGHTS}, (), (side,))
        occupied = self.destination.is_dir() and any(self.destination.iterdir())
        if occupied and self._overwrite:
            replace_folder(self.working, self.destination)
            sync_folder(self.destination.parent)
            drop_replaced(self.working, self.destination)
        else:
            place_folder(self.working, self.destination)
            sync_folder(self.destination.parent)

    def _write(self, view: memoryview, offset: int) -> None:
        if self._fd is None:
            raise ValueError("the adapter folder is not open")
        with output_errors(self.destination, "write the adapter"):
            done = 0
            while done < view.nbytes:
                done += os.pwrite(self._fd, view[done : done + (1 << 30)], offset + done)
