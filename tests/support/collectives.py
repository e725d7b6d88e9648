"""What devices send to each other, read from a compiled program."""

import math
import re

from jax.stages import Lowered

_OPERATION = re.compile(r"= (.+?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+)\[([\d,]*)\]")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2, "s64": 8, "u64": 8, "f64": 8}


def collectives(lowered: Lowered) -> dict[str, list[int]]:
    """{operation: bytes of each array that it exchanges}, of the program of one device."""
    found: dict[str, list[int]] = {}
    for result, operation in _OPERATION.findall(lowered.compile().as_text()):
        for kind, shape in _ARRAY.findall(result):
            elements = math.prod(int(size) for size in shape.split(",") if size)
            found.setdefault(operation, []).append(elements * _BYTES.get(kind, 4))
    return found
