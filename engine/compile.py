"""Compiled kernels: generated source goes to a folder of the user's cache, and Numba keeps the machine code beside it.

The folder's name holds a hash of everything that the generated code depends on (this package's kernels,
Numba, Python), so that another version never meets stale code.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import platform
import sys
import tempfile
import threading
from collections.abc import Callable
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

from plait.engine.codegen import Kernel
from plait.ops.errors import KernelError


def numba_available() -> bool:
    """Whether Numba can be imported, without importing it."""
    return importlib.util.find_spec("numba") is not None


@cache
def cache_folder() -> Path:
    """The folder of generated kernels: `$PLAIT_CACHE_DIR`, else the user's cache folder, else a temporary one."""
    import numba

    import plait.ops.kernels as kernels

    digest = blake2b(f"{numba.__version__} {sys.version} {platform.machine()}".encode(), digest_size=8)
    for source in sorted(Path(str(kernels.__file__)).parent.glob("jit_*.py")):
        digest.update(source.read_bytes())
    root = Path(os.environ.get("PLAIT_CACHE_DIR") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "plait")
    folder = root / "kernels" / digest.hexdigest()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if os.access(folder, os.W_OK) and folder.stat().st_uid == os.getuid():
            return folder
    except OSError:
        pass
    temporary = tempfile.TemporaryDirectory(prefix="plait-kernels-")
    atexit.register(temporary.cleanup)
    return Path(temporary.name)


_LOCK = threading.Lock()
_COMPILED: dict[str, Callable[..., None]] = {}


def compiled(kernel: Kernel) -> Callable[..., None]:
    """Machine code of a generated kernel, from memory, from disk or newly compiled.

    Raises:
        KernelError: Numba cannot compile it.
    """
    with _LOCK:
        function = _COMPILED.get(kernel.key)
        if function is None:
            function = _COMPILED[kernel.key] = _import(kernel)
        return function


def _import(kernel: Kernel) -> Callable[..., None]:
    _vectorise_many_arrays()
    path = cache_folder() / f"k_{kernel.key}.py"
    source = kernel.source.encode()
    if not path.exists() or path.read_bytes() != source:
        partial = path.with_suffix(f".{os.getpid()}.tmp")
        partial.write_bytes(source)
        partial.replace(path)
    spec = importlib.util.spec_from_file_location(f"plait_kernel_{kernel.key}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # Numba's cached code looks its module up by name
    try:
        try:
            spec.loader.exec_module(module)
        except Exception:  # damaged machine code beside a sound source: compile once more
            for stale in path.parent.glob(f"__pycache__/{path.stem}.*"):
                stale.unlink(missing_ok=True)
            spec.loader.exec_module(module)
    except Exception as error:
        raise KernelError(f"the generated kernel {path} does not compile: {error}; run with --backend torch and report this", path=str(path)) from error
    result: Any = module.kernel
    return result  # type: ignore[no-any-return]


@cache
def _vectorise_many_arrays() -> None:
    """Let LLVM vectorise loops over more arrays than its default of eight overlap checks allows."""
    import llvmlite.binding as llvm

    llvm.set_option("plait", "--runtime-memory-check-threshold=512")
    llvm.set_option("plait", "--memory-check-merge-threshold=512")
