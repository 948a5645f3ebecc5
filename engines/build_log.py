"""What TensorRT says when it refuses a graph, and what that means: one of our rules and a repair.

Each row was provoked with a graph of a few nodes and the real TensorRT-RTX 1.7 builder
(``source`` "run": tests/engines/test_build_log.py builds the graph again), or stands in NVIDIA's
documentation or forums for TensorRT 10 and 11 ("doc"). The rule numbers are those of
``fdda-deploy check``, which this floor may not import; a test compares them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

CHECK = "Run `fdda-deploy check` on the ONNX file: it names the rule and the repair."


@dataclass(frozen=True)
class Refusal:
    """One thing that TensorRT objects to.

    Attributes:
        pattern: Found in TensorRT's words, upper or lower case.
        rule: Our rule, ``T003``; empty where the graph is not at fault.
        why: What is behind it, a clause.
        repair: What to do, a sentence.
        source: ``run`` or ``doc``.
        operators: Only for nodes of these types; empty for all.
    """

    pattern: re.Pattern[str] = field(repr=False)
    rule: str
    why: str
    repair: str
    source: str = "run"
    operators: frozenset[str] = frozenset()

    def sentence(self) -> str:
        """Returns ``T003: why. Repair.`` as it stands in an error message."""
        why = f"{self.rule}: {self.why}" if self.rule else self.why[0].upper() + self.why[1:]
        return f"{why}. {self.repair}"


def _row(
    pattern: str, rule: str, why: str, repair: str, source: str = "run", *operators: str
) -> Refusal:
    return Refusal(
        re.compile(pattern, re.IGNORECASE), rule, why, repair, source, frozenset(operators)
    )


FIX = "`fdda-deploy check FILE --fix` repairs it"
INTEGER_OPERATORS = (
    *("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"),
    "DynamicQuantizeLinear",
)
REFUSALS: tuple[Refusal, ...] = (
    _row(
        r"shiftIsAllZeros|non-zero zero point",
        "T003",
        "TensorRT quantizes symmetrically, so every zero-point is 0",
        "Quantize again with symmetric INT8.",
    ),
    _row(
        r"zero_point.*not an initializer",
        "T003",
        "the zero-point is computed, and TensorRT wants a constant",
        "Make the zero-point an initializer of zeros.",
    ),
    _row(
        r"Quantized constant .* is only allowed before DQ",
        "T010",
        "integer weights go straight from their initializer into a DequantizeLinear",
        "Fold the operator between them into the initializer.",
    ),
    _row(
        r"scale coefficients must all be positive",
        "T005",
        "a scale is zero, negative or not a number",
        "Calibrate again: the tensor never varied, or a NaN reached its range.",
    ),
    _row(
        r"scale and zero point must have the same volume",
        "T006",
        "scale and zero-point differ in their number of elements",
        "Give both one element per channel.",
    ),
    _row(
        r"number of scales is not equal to the number of output channels",
        "T008",
        "a per-channel scale needs one element per channel of its axis",
        "Set the axis attribute to the output channel, or quantize the weight again.",
    ),
    _row(
        r"input has type Int32 but must have type",
        "T015",
        "a bias stays in float; TensorRT has no INT32 DequantizeLinear",
        f"{FIX}: it writes the bias back as float.",
    ),
    _row(
        r"CHECK\(dtype == W\.type\(\)\)",
        "T013",
        "no convolution kernel takes INT4 weights beside INT8 activations",
        "Carry the 4-bit grid in an INT8 tensor (--scheme w4a8 does), or leave the input in float.",
    ),
    _row(
        r"HW-specific datatypes: fp8",
        "T027",
        "FP8 needs SM89 or later",
        "Build for GPUs of SM89 and later, or use INT8.",
    ),
    _row(
        r"must be of same type|must have same input types",
        "T017",
        "two operands differ in floating-point type, and a strongly typed network casts nothing",
        "Give scales the type of the tensor they scale, and add a Cast between float types.",
    ),
    _row(
        r"plugin not found",
        "T016",
        "the operator belongs to another runtime, and no plugin of that name is loaded",
        f"{FIX} where it is ONNX Runtime's; else export with standard ONNX operators.",
    ),
    _row(
        r"^false$|no importer registered|not supported",
        "T016",
        "TensorRT has no integer operators of this kind: Q/DQ pairs say the same",
        "Export in Q/DQ form (`quant_format=QuantFormat.QDQ` in ONNX Runtime's tool).",
        "run",
        *INTEGER_OPERATORS,
    ),
    _row(
        r"no tactics to implement the operation within workspace",
        "",
        "the scratch memory allowed is too small for a layer",
        "Raise --workspace, or leave it out.",
    ),
    _row(
        r"check_turing_op_compatibility|Cannot compile operation .* for Turing",
        "",
        "a layer has no kernel for SM75",
        "Leave 75 out of --sm, or quantize the layer.",
    ),
    _row(
        r"graph_jit\.cpp.*(CUDA_SUCCESS|myelinSuccess)|Target SM \d+ is not found",
        "",
        "the builder loads compiled kernels on a GPU, and found none that fits",
        "Build where there is a GPU, or without stripping and refitting.",
    ),
    _row(
        r"Unable to load library: libnvinfer_lean",
        "",
        "plans for other releases need the lean runtime, which is not installed",
        "Leave --version-compatible out.",
    ),
    _row(
        r"could not find any implementation for node",
        "T024",
        "no kernel fits the types around this layer, often a Q/DQ pair on one side only",
        "Quantize both sides of the layer or neither, or raise --workspace.",
        "doc",
    ),
    _row(
        r"(network has dynamic or shape inputs|dynamic input).*no optimization profile",
        "T032",
        "an input has a dynamic size and no profile says how large it gets",
        "Give --min-batch, --opt-batch and --max-batch.",
        "doc",
    ),
    _row(
        r"out of memory|OutOfMemory|insufficient memory",
        "",
        "the GPU ran out of memory while timing kernels",
        "Free the GPU, or lower --workspace and --max-batch.",
        "doc",
    ),
)
"""First match wins, so the narrower rows stand first."""


def explain(words: str, operator: str = "") -> Refusal | None:
    """Returns the row that TensorRT's words mean, or None where no row knows them.

    Args:
        words: The message, without C++ source places.
        operator: ONNX type of the node it is about, where TensorRT says.

    Example:
        >>> explain("input has type Int32 but must have type FP8").rule
        'T015'
    """
    text = " ".join(words.split())
    for row in REFUSALS:
        if row.operators and operator not in row.operators:
            continue
        if row.pattern.search(text):
            return row
    return None


def advice(words: str, operator: str = "") -> str:
    """Returns the rule, the reason and the repair for TensorRT's words, or where to look."""
    row = explain(words, operator)
    return CHECK if row is None else row.sentence()
