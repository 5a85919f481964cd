"""The ops that lazy expressions are built of, each declared once.

An op has a *kind*, which says how it can run, and its meaning twice: as a scalar expression that
the code generator pastes into a fused loop, and as a function of arrays (torch or NumPy, given as
`xp`) that the reference interpreter calls. Tests hold the two to the same bits.

| kind    | meaning                                             | result               |
|---------|-----------------------------------------------------|----------------------|
| `load`  | a stored tensor                                     | tensor               |
| `map`   | element i needs element i of the inputs             | as its inputs        |
| `fold`  | a small value from all elements, by blocks          | a few float64, or one a row or column |
| `rows`  | needs whole rows                                    | one float64 a row, or a tensor |
| `whole` | needs whole tensors or matrices                     | tensor, matrices, a few float64 |
| `small` | a few numbers, computed on the host between passes  | a few float64        |

`small` is the glue of the four kinds of the design: what a fold gives, and what maps then use.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from plait.ops.kernels.elementary import exp, log, tanh

Kind = Literal["load", "map", "fold", "rows", "whole", "small"]
Arrays = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Op:
    """One declared operation.

    Attributes:
        name: unique name, part of content keys.
        kind: how it runs.
        code: scalar expression; `{0}`, `{1}` are the inputs, `{zero}`, `{one}` typed literals. For `keep_top` the
            generator passes as `{1}` the smallest key that is kept at the element. Ops that it treats by name have none.
        arrays: `(xp, *inputs)` on whole arrays of the block, same meaning.
        result: dtype of the result; `same` takes the first float input's.
        casts: type each input is read as in `code`: `f` the computing float, `u` uint32, `i` int64, `b` bool.
        flops: weight of the op in predicted time, in simple float operations an element (`planner/timing.py`); random bits,
            thresholds, row ranks and whole ops have rates of their own.
    """

    name: str
    kind: Kind
    code: str = ""
    arrays: Arrays | None = None
    result: str = "same"
    casts: str = ""
    flops: int = 1


OPS: dict[str, Op] = {}


def declare(name: str, kind: Kind, code: str = "", arrays: Arrays | None = None, result: str = "same", casts: str = "", flops: int = 1) -> Op:
    """Declare an op under a name of its own.

    Raises:
        ValueError: the name is taken.
    """
    if name in OPS:
        raise ValueError(f"op {name!r} is declared twice")
    OPS[name] = op = Op(name, kind, code, arrays, result, casts, flops)
    return op


LOAD = declare("load", "load", result="float32", flops=0)
CONST = declare("const", "small", result="float64", flops=0)
ITEM = declare("item", "small", result="float64", flops=0)
PACK = declare("pack", "small", result="float64", flops=0)
SOLVE = declare("solve", "small", result="float64", flops=0)
INFO = declare("info", "small", result="float64", flops=0)

# -- maps on floats; the same ops serve rows and small values in float64 -------------------------
declare("add", "map", "({0} + {1})", lambda xp, a, b: a + b, casts="ff")
declare("sub", "map", "({0} - {1})", lambda xp, a, b: a - b, casts="ff")
declare("mul", "map", "({0} * {1})", lambda xp, a, b: a * b, casts="ff")
declare("div", "map", "({0} / {1})", lambda xp, a, b: a / b, casts="ff", flops=4)
declare("neg", "map", "(-{0})", lambda xp, a: -a, casts="f")
declare("abs", "map", "abs({0})", lambda xp, a: abs(a), casts="f")
declare("sqrt", "map", "math.sqrt({0})", lambda xp, a: xp.sqrt(a), casts="f", flops=4)
declare("sign", "map", "({one} if {0} > {zero} else (-{one} if {0} < {zero} else {zero}))", lambda xp, a: xp.sign(a), casts="f")
declare("maximum", "map", "({0} if ({0} > {1} or {0} != {0}) else {1})", lambda xp, a, b: xp.where((a > b) | (a != a), a, b), casts="ff")
declare("minimum", "map", "({0} if ({0} < {1} or {0} != {0}) else {1})", lambda xp, a, b: xp.where((a < b) | (a != a), a, b), casts="ff")
declare("where", "map", "({1} if {0} else {2})", lambda xp, c, a, b: xp.where(c, a, b), casts="bff")
for _name, _sign in {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "eq": "==", "ne": "!="}.items():
    declare(_name, "map", f"({{0}} {_sign} {{1}})", (lambda compare: lambda xp, a, b: compare(a, b))(getattr(operator, _name)), result="bool", casts="ff")
declare("and", "map", "({0} & {1})", lambda xp, a, b: a & b, result="bool", casts="bb")
declare("or", "map", "({0} | {1})", lambda xp, a, b: a | b, result="bool", casts="bb")
declare("not", "map", "(not {0})", lambda xp, a: ~a, result="bool", casts="b")

# -- transcendental maps: of one implementation, so that what is decided by them is decided alike everywhere; `exp` and `tanh` for tensors in
# float32, `log` for rows and small values in float64
declare("exp", "map", "exp_f32({0})", lambda xp, a: exp(xp, a), casts="f", flops=32)
declare("tanh", "map", "tanh_f32({0})", lambda xp, a: tanh(xp, a), casts="f", flops=40)
declare("log", "map", "log_f64({0})", lambda xp, a: log(xp, a), casts="f", flops=40)

# -- maps that look at bits: magnitudes as integers, masks from counters -------------------------
declare("magnitude_key", "map", "uint32(f32_to_bits({0}) & MAGNITUDE)", lambda xp, a: a.view(xp.int32) & 0x7FFFFFFF, result="uint32", casts="f")
declare(
    "reversed_magnitude",
    "map",
    "bits_to_f32(uint32(MAGNITUDE - (f32_to_bits({0}) & MAGNITUDE)))",
    lambda xp, a: (0x7FFFFFFF - (a.view(xp.int32) & 0x7FFFFFFF)).view(xp.float32),
    casts="f",
)
declare(
    "keep_top",
    "map",
    "({0} >= {1})",
    lambda xp, key, cut, limit, index=None: (key > cut) | ((key == cut) & (index < limit)),
    result="bool",
    casts="uui",
    flops=4,
)
RANDOM = declare("random_bits", "map", result="uint32", flops=0)
declare("below", "map", "((uint32({0}) <= uint32({1} - 1)) & ({1} > 0))", lambda xp, bits, cut: bits < cut, result="bool", casts="ui")
declare("cast", "map", result="same", casts="f", flops=2)

# -- folds: a few numbers from all elements -----------------------------------------------------
SUM = declare("sum", "fold", result="float64", flops=4)
DOT = declare("dot", "fold", result="float64", flops=2)
LARGEST = declare("largest", "fold", result="float64")
KTH = declare("kth_magnitude", "fold", result="float64", flops=0)
COLUMN_DOT = declare("column_dot", "fold", result="float64", flops=2)
ROW_VALUES = declare("row_values", "fold", result="float64", flops=0)

#: Folds that give one number a block, which are added up, or of which the largest counts.
NUMBER_FOLDS = frozenset({"sum", "dot", "largest"})

# -- rows ---------------------------------------------------------------------------------------
ROW_SUM = declare("row_sum", "rows", result="float64", flops=4)
ROW_DOT = declare("row_dot", "rows", result="float64", flops=2)
ROW_MAX = declare("row_max", "rows", result="float64", flops=2)
ROW_LARGEST = declare("row_largest", "rows", result="float64")
ROW_RANK = declare("row_rank", "rows", result="int32", flops=0)
declare("take", "map", result="float32", flops=4)
COLUMN = declare("column", "map", result="int32")
ROW = declare("row", "map", result="int32")
declare("take_integer", "map", result="uint32", flops=4)

# -- whole: what each needs and how it runs is declared in `plait.ops.wholes` ----------------------
POLAR = declare("polar", "whole", result="float32", flops=0)
HOLD = declare("hold", "whole", result="float32", flops=0)
for _name in ("matrix", "stream", "matmul", "concat", "scale", "cut", "combine", "svd", "joint_svd", "part"):
    declare(_name, "whole", result="float32", flops=0)
for _name in ("row_dots", "prune_threshold", "prune", "opcm_block", "doge_correction"):
    declare(_name, "whole", result="float32", flops=0)
LATER = declare("later", "map", "{0}", lambda xp, a: a, casts="f")
