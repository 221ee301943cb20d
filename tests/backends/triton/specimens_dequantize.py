"""The specializations of the dequantizing and the rounding kernels to compile."""

from __future__ import annotations

from compiled import Specimen

from moe_kernels.backends.triton import dequantize, number_formats

POINTERS = {"nested_absmax": "*fp32", "nested_code": "*fp32", "offset": "*fp32", "offsets": "*i32", "levels": "*fp32"}


def specimens(target: str) -> list[Specimen]:
    found = [
        Specimen(
            "levels-bf16",
            number_formats._levels_kernel,
            {"levels": "*bf16"},
            {},
            frozenset({"levels"}),
            {"num_warps": 1},
        )
    ]
    for out in ("bf16", "fp32"):
        for nested in (True, False):
            types = {
                "codes": "*u8",
                "absmax": "*u8" if nested else "*fp32",
                "out": f"*{out}",
                "blocks": "i32",
                **POINTERS,
            }
            constants = {"NESTED": nested, "BLOCKS": dequantize.NF4_BLOCKS, "INTERPRET": False}
            if not nested:
                constants |= {"nested_absmax": None, "nested_code": None, "offset": None}
            aligned = frozenset(types) - {"offset"} - constants.keys()
            name = f"dequantize-nf4-{out}-{'nested' if nested else 'plain'}"
            found.append(Specimen(name, dequantize._dequantize_nf4_kernel, types, constants, aligned))
        types = {"values": "*i8", "scale": "*fp32", "offsets": "*i32", "out": f"*{out}", "O": "i32", "H": "i32"}
        constants = {"ROWS": dequantize.INT8_ROWS, "COLUMNS": dequantize.INT8_COLUMNS, "INTERPRET": False}
        kernel = dequantize._dequantize_int8_kernel
        found.append(Specimen(f"dequantize-int8-{out}", kernel, types, constants, frozenset(types)))
    types = {"x": "*bf16", "values": "*i8", "scale": "*fp32", "H": "i32", "x_row": "i32"}
    constants = {"x_column": 1, "COLUMNS": 1024}
    found.append(Specimen("round-rows-bf16", dequantize._round_rows_kernel, types, constants, frozenset(types)))
    return found
