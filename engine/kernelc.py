"""From generated source to machine code in a file: the only module that needs Numba.

    python -m plait.engine.kernelc FOLDER KEY...

compiles `FOLDER/k_KEY.py` to `FOLDER/k_KEY.o`, one after another. `plait.engine.compile` runs this in processes of its own, so that
a merge neither waits for Numba to start nor keeps its memory when its kernels are compiled already (docs/decisions/0007).

A file holds the 32-byte blake2b digest of the rest, then a relocatable object with one function, `plait_KEY`, called with two
pointers that Numba's own convention wants (result and error) and the kernel's arguments; it returns 0.
"""

# numba gives its compiler no types
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

DIGEST_BYTES = 32
NO_ROOM = 3  #: exit status where the folder cannot be written
#: Functions of the C library that generated code may call; anything else would be a reference to Numba's own run time.
_FROM_LIBC = {"memset", "memcpy", "memmove", "exp", "expf", "log", "logf", "sqrt", "sqrtf", "fmax", "fmin", "pow", "powf", "fmod", "fmodf", "floor", "ceil"}
#: Borrowed arrays have no owner to tell when the last reference goes, so this is never called; it is there for the linker.
_NO_OWNER = """
define void @NRT_MemInfo_call_dtor(i8* %unused) {
  ret void
}
"""


def build(folder: Path, key: str) -> None:
    """Compile one kernel into the folder; another process may do the same at the same time.

    Raises:
        Exception: whatever Numba or LLVM say against the source.
    """
    code = object_code(folder / f"k_{key}.py", f"plait_{key}")
    partial = folder / f"k_{key}.{os.getpid()}.tmp"
    partial.write_bytes(blake2b(code, digest_size=DIGEST_BYTES).digest() + code)
    partial.replace(folder / f"k_{key}.o")


def object_code(path: Path, symbol: str) -> bytes:
    """A relocatable object with the function `kernel` of a generated module under the name `symbol`."""
    import llvmlite.binding as llvm
    from numba.core import compiler, registry, types

    _vectorise_many_arrays()
    module = _module(path)
    flags: Any = compiler.Flags()
    flags.no_cpython_wrapper = flags.no_cfunc_wrapper = flags.noalias = flags.nrt = True  # no two buffers of a kernel overlap
    flags.error_model = "numpy"
    target = registry.cpu_target
    target.typing_context.refresh()
    target.target_context.refresh()
    result = compiler.compile_extra(target.typing_context, target.target_context, module.kernel, module.SIGNATURE, types.void, flags, {})
    linked = llvm.parse_assembly(result.library.get_llvm_str())
    linked.link_in(llvm.parse_assembly(_NO_OWNER))
    linked.get_function(result.fndesc.llvm_func_name).name = symbol
    linked.verify()
    outside = {f.name for f in linked.functions if f.is_declaration and not f.name.startswith("llvm.")} - _FROM_LIBC
    if outside:
        raise ValueError(f"it calls {', '.join(sorted(outside))}, which only Numba's run time has")
    return bytes(target_machine().emit_object(linked))


@cache
def target_machine() -> Any:
    """LLVM's description of this processor; code for it runs on processors with the same features only."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_triple(llvm.get_process_triple())
    return target.create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3, reloc="default", codemodel="jitdefault", jit=True
    )


def _module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"plait_kernel_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def _vectorise_many_arrays() -> None:
    """Let LLVM vectorise loops over more arrays than its default of eight overlap checks allows."""
    import llvmlite.binding as llvm

    llvm.set_option("plait", "--runtime-memory-check-threshold=512")
    llvm.set_option("plait", "--memory-check-merge-threshold=512")


def main(arguments: Sequence[str]) -> int:
    """Compile what the command line names; a failure is one line on standard error and status 1, or `NO_ROOM`."""
    folder = Path(arguments[0])
    sys.dont_write_bytecode = True
    for key in arguments[1:]:
        try:
            build(folder, key)
        except OSError as error:
            print(f"{folder}: {error.strerror}", file=sys.stderr)
            return NO_ROOM
        except Exception as error:
            print(f"{folder / f'k_{key}.py'}: {type(error).__name__}: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
