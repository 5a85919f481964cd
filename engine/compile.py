"""Compiled kernels: generated source and its machine code lie in a folder of the user's cache, and are loaded from there.

Loading needs LLVM's linker alone (llvmlite); Numba is started, in processes of its own, only for kernels that are not there yet.
The folder's name holds a hash of everything that the machine code depends on (this package's kernels, Numba, Python, the
processor), so that another version never meets stale code. A damaged file is compiled again.
"""

from __future__ import annotations

import atexit
import ctypes
import importlib.util
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

from plait.engine.kernel import Kernel
from plait.engine.kernelc import DIGEST_BYTES, NO_ROOM, build, target_machine
from plait.engine.libraries import library_version
from plait.ops.errors import KernelError, Stopped


def numba_available() -> bool:
    """Whether Numba can be imported, without importing it."""
    return importlib.util.find_spec("numba") is not None


@cache
def cache_folder() -> Path:
    """The folder of generated kernels: `$PLAIT_CACHE_DIR`, else the user's cache folder, else a temporary one."""
    import llvmlite.binding as llvm

    import plait.ops.kernels as kernels

    machine = f"{llvm.get_process_triple()} {llvm.get_host_cpu_name()} {llvm.get_host_cpu_features().flatten()}"
    digest = blake2b(f"{library_version('numba')} {library_version('llvmlite')} {sys.version} {machine}".encode(), digest_size=8)
    for source in (*sorted(Path(str(kernels.__file__)).parent.glob("jit_*.py")), Path(__file__).with_name("kernelc.py")):
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


#: Compile in this process. What Numba takes would then be this process's memory, beside the budget: for tests, which compile a lot.
compile_here = False
_STOP_SEEN_S = 0.1
_LOCK = threading.Lock()
_COMPILED: dict[str, Callable[..., int]] = {}
_ENGINES: list[Any] = []  # LLVM frees the code with the engine that loaded it


def compiled(kernel: Kernel) -> Callable[..., int]:
    """Machine code of a generated kernel, from memory, from disk or newly compiled.

    Raises:
        KernelError: it cannot be compiled.
    """
    with _LOCK:
        function = _COMPILED.get(kernel.key)
        if function is None:
            function = _load(kernel)
            if function is None:
                _compile([kernel], 1)
                function = _load(kernel)
            if function is None:
                path = cache_folder() / f"k_{kernel.key}.o"
                raise KernelError(f"the compiled kernel {path} cannot be read back; check the disk, or set PLAIT_CACHE_DIR to another folder", path=str(path))
            _COMPILED[kernel.key] = function
        return function


def compile_missing(kernels: Iterable[Kernel], processes: int, stop: threading.Event | None = None) -> int:
    """Compile all kernels that have no machine code yet, in up to `processes` processes at once.

    Returns:
        How many were compiled.

    Raises:
        KernelError: one cannot be compiled.
        Stopped: `stop` was set meanwhile; what is compiled stays.
    """
    with _LOCK:
        missing: dict[str, Kernel] = {}
        for kernel in kernels:
            if kernel.key not in _COMPILED and kernel.key not in missing:
                function = _load(kernel)
                if function is None:
                    missing[kernel.key] = kernel
                else:
                    _COMPILED[kernel.key] = function
        _compile(list(missing.values()), processes, stop)
        return len(missing)


def _load(kernel: Kernel) -> Callable[..., int] | None:
    """The kernel's function out of its file; None where there is no file, or a damaged one."""
    import llvmlite.binding as llvm

    try:
        data = (cache_folder() / f"k_{kernel.key}.o").read_bytes()
    except OSError:
        return None
    code = data[DIGEST_BYTES:]
    if blake2b(code, digest_size=DIGEST_BYTES).digest() != data[:DIGEST_BYTES]:
        return None
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), target_machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    address = engine.get_function_address(f"plait_{kernel.key}")
    _ENGINES.append(engine)
    pointers = [ctypes.c_void_p] * kernel.arrays
    # ctypes lets go of the GIL while the function runs
    return ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, *pointers)(address)


def _compile(kernels: list[Kernel], processes: int, stop: threading.Event | None = None) -> None:
    """Write the sources and have them compiled."""
    folder = cache_folder()
    for kernel in kernels:
        partial = folder / f"k_{kernel.key}.{os.getpid()}.source.tmp"
        try:
            partial.write_text(kernel.source)
            partial.replace(folder / f"k_{kernel.key}.py")
        except OSError as error:
            raise _no_room(f"{folder}: {error.strerror}") from error
    if compile_here:
        for kernel in kernels:
            try:
                build(folder, kernel.key)
            except Exception as error:
                raise _refused(f"{folder / f'k_{kernel.key}.py'}: {type(error).__name__}: {error}") from error
        return
    shares = [share for first in range(processes) if (share := kernels[first::processes])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    running: list[subprocess.Popen[str]] = []
    try:
        for share in shares:
            command = [sys.executable, "-m", "plait.engine.kernelc", str(folder), *(k.key for k in share)]
            running.append(_started(command, environment))
        said = [_ended(process, stop) for process in running]
    except BaseException:
        for process in running:
            with suppress(OSError):
                process.kill()
            process.wait()
        raise
    for process, text in zip(running, said, strict=True):
        if process.returncode == NO_ROOM:
            raise _no_room(text.strip())
        if process.returncode:
            raise _refused(text.strip() or f"the compiler ended with status {process.returncode}")


def _started(command: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    # In a session of its own: a terminal's Ctrl-C is for the merge, which decides what becomes of its compilers.
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def _ended(process: subprocess.Popen[str], stop: threading.Event | None) -> str:
    """What a compiler said, when it has ended."""
    while True:
        try:
            return process.communicate(timeout=_STOP_SEEN_S)[1]
        except subprocess.TimeoutExpired:
            if stop is not None and stop.is_set():
                raise Stopped("the run was stopped before it was finished, while its kernels were compiled") from None


def _no_room(why: str) -> KernelError:
    return KernelError(f"compiled kernels cannot be written ({why}); free some space there, or set PLAIT_CACHE_DIR to another folder")


def _refused(why: str) -> KernelError:
    return KernelError(f"a generated kernel does not compile: {' '.join(why.split())}; run with --backend torch and report this")
