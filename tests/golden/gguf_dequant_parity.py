"""Compares dequantize_row with the gguf Python package, bit for bit, on random blocks of every GGUF type.

    python tests/golden/gguf_dequant_parity.py build/tests/dequant_tool

Half of the blocks are arbitrary bytes (their scales may be huge, subnormal, infinite or NaN); the other half have finite
scales. Needs numpy and gguf. Prints one line per type; exits 1 on the first type that differs.
"""
import subprocess
import sys

import numpy as np
from gguf import GGMLQuantizationType as T
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize

BLOCKS = 4096
# Byte offsets of the f16 scales in a block.
TYPES = {
    "f16": (T.F16, []), "bf16": (T.BF16, []),
    "q4_0": (T.Q4_0, [0]), "q4_1": (T.Q4_1, [0, 2]), "q5_0": (T.Q5_0, [0]), "q5_1": (T.Q5_1, [0, 2]), "q8_0": (T.Q8_0, [0]),
    "q2_k": (T.Q2_K, [80, 82]), "q3_k": (T.Q3_K, [108]), "q4_k": (T.Q4_K, [0, 2]), "q5_k": (T.Q5_K, [0, 2]),
    "q6_k": (T.Q6_K, [208]),
}


def random_blocks(rng, block_bytes, scale_offsets):
    blocks = rng.integers(0, 256, size=(BLOCKS, block_bytes), dtype=np.uint8)
    for offset in scale_offsets:
        scales = rng.normal(0, 0.05, size=BLOCKS // 2).astype(np.float16)
        blocks[: BLOCKS // 2, offset : offset + 2] = scales.view(np.uint8).reshape(-1, 2)
    return blocks


def main(tool):
    rng = np.random.default_rng(20240601)
    for name, (qtype, scale_offsets) in TYPES.items():
        block_elems, block_bytes = GGML_QUANT_SIZES[qtype]
        if not scale_offsets:                      # every 16-bit pattern there is
            blocks = np.arange(65536, dtype=np.uint16).view(np.uint8).reshape(-1, 2)
        else:
            blocks = random_blocks(rng, block_bytes, scale_offsets)
        with np.errstate(all="ignore"):
            expected = dequantize(blocks.reshape(1, -1), qtype).astype(np.float32).ravel()
        done = subprocess.run([tool, name], input=blocks.tobytes(), capture_output=True)
        if done.returncode != 0:
            sys.exit(f"{name}: {done.stderr.decode().strip()}")
        found = np.frombuffer(done.stdout, dtype=np.float32)
        if found.size != expected.size:
            sys.exit(f"{name}: expected {expected.size} values, found {found.size}")
        both_nan = np.isnan(expected) & np.isnan(found)
        differ = (expected.view(np.uint32) != found.view(np.uint32)) & ~both_nan
        if differ.any():
            i = int(np.argmax(differ))
            sys.exit(f"{name}: {int(differ.sum())} of {found.size} differ, first at {i}: expected {expected[i]!r}, "
                     f"found {found[i]!r}")
        print(f"{name}: {found.size} values of {blocks.size // block_bytes} blocks equal")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
