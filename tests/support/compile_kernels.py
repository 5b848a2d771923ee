"""Compile every Triton program for sm_90 without a GPU, and print how many bytes the assembler had to spill."""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from agentdb.kernels import triton_kernels as programs
from agentdb.kernels.triton_ops import unrolled_block

ASSEMBLER = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
I64, F32, F64, BF16 = "*i64", "*fp32", "*fp64", "*bf16"


def cases(d):
    """Yield (program, types of the arguments in order, constants, warps, stages) as the launchers choose them."""
    block = 128 if d % 128 == 0 else 64
    metric = {"METRIC": 1, "WEIGHTED": True}
    rows = ["i32"] * 2
    for shape in ({"BR": 128, "BQ": 16, "STAGES": 2}, {"BR": 64, "BQ": 64, "STAGES": 4}):
        constants = {"D": d, "BK": 64, "G": 32, "SHIFT": True, "WIDE": False, **shape}
        yield programs.group_max, [BF16, I64, F32, I64, F32, *["i32"] * 4], constants, 4, 3
    constants = {"D": d, "BR": 128, "BQ": 128, "BK": 64, "G": 32, "SHIFT": True, "WIDE": False}
    tile = "tensordesc<bf16[128, 64]>"
    yield programs.group_max_tma, [tile, tile, I64, F32, I64, F32, *["i32"] * 5], constants, 4, 3
    yield programs.block_max, [F32, F32, "i32"], {"B": 128, "S": 32}, 4, 3
    for size, most in ((1024, 32), (4096, 128)):
        constants = {"N": size, "M": most, "S": 32, "LISTED": True}
        yield programs.top_columns, [F32, I64, I64, F32, *["i32"] * 3], constants, 8 if size > 1024 else 4, 3
    constants = {"D": d, "BK": block, "G": 32, "SHIFT": True}
    yield programs.rescore_groups, [F32, I64, I64, F32, F32, *rows, "i32", "i32"], constants, 4, 3
    constants = {"D": d, "BK": unrolled_block(d, 64), "R": 8, **metric}
    yield programs.exact_scores, [F32, I64, I64, I64, I64, F64, F64, *rows, "i32"], constants, 4, 3
    constants = {"D": d, "BK": block, "BQ": 16, "P": 64, "CH": 8, "SHIFT": True, "WIDE": False, "STAGES": 1}
    yield programs.segment_scores, [BF16, I64, I64, I64, F32, F32, *rows, "i32"], constants, 4, 3
    constants = {"D": d, "BK": unrolled_block(d, 128), "P": 64, "CH": 2, "SHIFT": True, "STAGES": 1}
    yield programs.segment_scores_one, [BF16, I64, I64, I64, F32, F32, *rows, "i32"], constants, 4, 3
    for tokens in (32, 128):
        constants = {"D": d, "BK": 32, "BQ": tokens, "BT": 64, "MAX_BLOCKS": 4, "PRECISION": "tf32x3"}
        yield programs.maxsim, [F32, F32, F32, I64, F32, "i32", "i32", "i32"], constants, 4 if tokens <= 64 else 8, 3
    yield programs.mmr, [F64, F64, I64, "i32", F64], {"K": 10, "C": 128}, 4, 3
    constants = {"D": d, "B": 128, "BK": 64, "WIDE": False}
    yield programs.near_pairs, [BF16, F32, I64, I64, "i32", "i32", "fp32"], constants, 8, 3
    constants = {"D": d, "BK": block, "METRIC": 1}
    yield programs.prepare_queries, [F32, F32, BF16, F32, F64, F64], constants, 2, 3
    for is_segment, candidates in ((False, 32), (True, 64), (False, 128)):
        constants = {"D": d, "BK": 16, "C": candidates, "G": 64, "SEGMENT": is_segment, **metric}
        tensors = [F32, F64, F64, F64, I64, I64, I64, I64, I64, F32, F32, I64, I64, I64, I64]
        yield programs.finish, [*tensors, *["i32"] * 7], constants, 8 if candidates > 64 else 4, 3


def spilled(program, types, constants, warps, stages):
    names = program.arg_names
    given = iter(types)
    signature = {name: "constexpr" if name in constants else next(given) for name in names}
    aligned = {
        (place,): [["tt.divisibility", 16]] for place, name in enumerate(names) if signature[name].startswith("*")
    }
    source = ASTSource(program, signature, constants, aligned)
    options = {"num_warps": warps, "num_stages": stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as text:
        text.write(compiled.asm["ptx"])
        text.flush()
        command = [str(ASSEMBLER), "-v", "--gpu-name=sm_90a", text.name, "-o", "/dev/null"]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return int(re.search(r"(\d+) bytes spill stores", report)[1])


def main():
    """Compile for each dimension given; "1536:mmr,finish" means these programs only."""
    for wanted in sys.argv[1:]:
        d, _, names = wanted.partition(":")
        for program, *rest in cases(int(d)):
            if not names or program.fn.__name__ in names.split(","):
                print(f"{program.fn.__name__} D={d}: {spilled(program, *rest)} bytes spilled", flush=True)


if __name__ == "__main__":
    main()
