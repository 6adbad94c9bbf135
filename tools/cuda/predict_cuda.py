"""Predict the CUDA kernels' times from their tiles: the prediction that a first run on a GPU tests.

    python tools/cuda/predict_cuda.py [--tokens N] [--write]

For each kernel of MiniLM's layer in bfloat16, a block's work is counted from the tile shapes in
csrc/cuda: operations of the tensor cores, bytes through shared memory (ldmatrix reads and cp.async
writes), bytes from and to L2. The slowest of the three over all waves of blocks gives the time.
--write puts the table into docs/cuda.md; the tests compare it.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

from pages import CUDA_PAGE, page_parser, print_or_write

H, F, HEADS, HEAD_DIM, SEQLEN, SIZE = 384, 1536, 12, 32, 32, 2


@dataclass(frozen=True)
class Device:
    """Rates of a device; `mma`: the share of the peak that mma.sync is assumed to reach."""

    name: str
    sms: int
    ghz: float
    flops_per_cycle: float  # of one SM in bfloat16
    mma: float
    wgmma: float  # the same of wgmma; 0: has none
    l2_bytes_per_second: float
    shared_kib: int

    @property
    def peak(self) -> float:
        """FLOP/s of all SMs."""
        return self.sms * self.ghz * 1e9 * self.flops_per_cycle


# SMs, clocks and peaks are the data sheets'. The instructions' shares and L2's bandwidth are
# assumptions, which the first run on a device will replace.
DEVICES = (
    Device("A100", 108, 1.41, 2048, 0.90, 0.0, 4.0e12, 163),
    Device("H100", 132, 1.755, 4096, 0.62, 0.85, 5.5e12, 227),
    Device("H200", 132, 1.755, 4096, 0.62, 0.85, 5.5e12, 227),
)


@dataclass(frozen=True)
class Kernel:
    """A block's counts."""

    name: str
    tile: str
    blocks: int
    shared_kib: float
    flop: float
    shared_bytes: float
    l2_bytes: float
    needs_wgmma: bool = False
    scalar_operations: float = 0.0  # that nothing of the block's own hides

    def blocks_per_sm(self, device: Device) -> int:
        """By shared memory, and at most two by registers."""
        return max(1, min(2, int(device.shared_kib // self.shared_kib)))

    def bounds(self, device: Device) -> dict[str, float]:
        """Seconds by what bounds it."""
        per_sm = self.blocks_per_sm(device)
        waves = math.ceil(self.blocks / (device.sms * per_sm))
        cycles = waves * per_sm / (device.ghz * 1e9)
        share = device.wgmma if self.needs_wgmma else device.mma
        return {
            "tensor cores": cycles
            * (self.flop / (device.flops_per_cycle * share) + self.scalar_operations / 128),
            "shared memory": cycles * self.shared_bytes / 128,
            "L2": self.blocks * self.l2_bytes / device.l2_bytes_per_second,
        }


def product(name: str, rows: int, columns: int, warps: tuple[int, int], K: int, blocks: int,
            stages: int, epilogue: float) -> Kernel:  # fmt: skip
    """A tile of rows x columns over K by warps_m x warps_n warps."""
    steps = K * SIZE // 32
    reads = steps * 32 * (rows * warps[1] + columns * warps[0])  # each warp column reads all of A
    writes = (rows + columns) * K * SIZE
    return Kernel(name, f"{rows} x {columns}", blocks, stages * (rows + columns) * 80 / 1024,
                  2.0 * rows * columns * K, reads + writes, writes + epilogue)  # fmt: skip


def kernels(tokens: int) -> list[Kernel]:
    """The five of a layer."""
    rows = 64
    qkv_blocks = math.ceil(tokens / 128) * (3 * H // 128)
    chunks = F // 64
    ffn_reads = chunks * (
        H * SIZE // 32 * 32 * (rows * 2 + 64 * 4)  # x W1: 4 x 2 warps
        + 4 * 32 * (rows * 8 + H)
    )  # h W2: 1 x 8 warps
    ffn_writes = rows * H * SIZE + 2 * F * H * SIZE + rows * F * SIZE
    sentences = tokens // SEQLEN
    attention_rows = 16 + 2 * 64
    attention_reads = 2 * 32 * (16 + 64) + 4 * 32 * 64
    return [
        product("linear (QKV)", 128, 128, (2, 2), H, qkv_blocks, 4, 128 * 128 * SIZE),
        Kernel("attention", "16 x 64, a warp a head", sentences * (SEQLEN // 16) * (HEADS // 4),
               4 * attention_rows * 80 / 1024, 4 * 4.0 * 16 * 64 * HEAD_DIM,
               4 * (attention_reads + attention_rows * 64), 4 * attention_rows * 64),
        product("linear_residual_layer_norm", rows, H, (1, 8), H, math.ceil(tokens / rows), 4,
                2 * rows * H * SIZE),
        Kernel("ffn_residual_layer_norm", f"{rows} x {H}, F by 64", math.ceil(tokens / rows),
               (rows * 784 + 64 * 784 + H * 144 + rows * 144) / 1024, 4.0 * rows * H * F,
               ffn_reads + ffn_writes, rows * H * SIZE * 3 + 2 * F * H * SIZE),
    ]  # fmt: skip


def hopper_kernels(tokens: int) -> list[Kernel]:
    """The same with the three of sm_90a: 128 rows a block, two warpgroups."""
    attention = kernels(tokens)[1]
    blocks = math.ceil(tokens / 128)

    def boxes(name: str, columns: int, parts: int, residual: int, count: int) -> Kernel:
        steps = H // 16
        reads = steps * 2 * 32 * (64 * parts + columns)  # by each warpgroup; A once a part
        writes = (128 + columns) * H * SIZE
        epilogue = 128 * columns * SIZE
        return Kernel(f"{name}, sm_90a", f"128 x {columns}", count,
                      (2 * (128 + columns) * 128 + residual) / 1024, 2.0 * 128 * columns * H,
                      reads + writes, writes + epilogue, True)  # fmt: skip

    chunks = F // 32
    reads = chunks * 2 * 32 * (H // 16 * (64 + 32) + 2 * H)
    writes = 128 * H * SIZE + 2 * F * H * SIZE
    # GELU costs some 13 operations an element; products hide that of one of two warpgroups.
    gelu = 13.0 * 64 * F
    ffn = Kernel("ffn_residual_layer_norm, sm_90a", f"128 x {H}, F by 32", blocks,
                 (128 * 768 + 2 * 2 * 32 * 768) / 1024, 4.0 * 128 * H * F, reads + writes,
                 writes + 2 * 128 * H * SIZE, True, gelu)  # fmt: skip
    return [boxes("linear (QKV)", 192, 1, 0, blocks * (3 * H // 192)), attention,
            boxes("linear_residual_layer_norm", H, 2, 128 * H * SIZE, blocks), ffn]  # fmt: skip


def table(tokens: int) -> str:
    """The predictions as Markdown: what runs everywhere, then what sm_90a has."""
    lines = ["| kernel | tile | shared | MFLOP a block | shared bytes a block | "
             + " | ".join(f"{d.name}: us, bound by" for d in DEVICES) + " |",
             "| --- " * (5 + len(DEVICES)) + "|"]  # fmt: skip
    for which in (kernels(tokens), hopper_kernels(tokens)):
        lines += layer_rows(which, tokens)
    return "\n".join(lines) + "\n"


def layer_rows(which: list[Kernel], tokens: int) -> list[str]:
    """A row a kernel, and one of six layers of them."""
    lines = []
    is_hopper = any(kernel.needs_wgmma for kernel in which)
    total = {device.name: 0.0 for device in DEVICES}
    for kernel in which:
        cells = []
        for device in DEVICES:
            if is_hopper and not device.wgmma:
                cells.append("-")
                continue
            bounds = kernel.bounds(device)
            bound = max(bounds, key=bounds.__getitem__)
            total[device.name] += bounds[bound]
            cells.append(f"{bounds[bound] * 1e6:.0f}, {bound}")
        lines.append(f"| `{kernel.name}` | {kernel.tile} | {kernel.shared_kib:.0f} KiB | "
                     f"{kernel.flop / 1e6:.1f} | {kernel.shared_bytes / 1024:.0f} KiB | "
                     + " | ".join(cells) + " |")  # fmt: skip
    flop = tokens * (21.23e6 + 9216.0 * SEQLEN)
    cells = []
    for device in DEVICES:
        if is_hopper and not device.wgmma:
            cells.append("-")
            continue
        seconds = 6 * total[device.name]
        cells.append(f"{tokens / seconds / 1e6:.1f} M tokens/s, "
                     f"{100 * flop / seconds / device.peak:.0f} % of the peak")  # fmt: skip
    name = "six layers, sm_90a" if is_hopper else "six layers"
    lines.append(f"| {name} | | | | | " + " | ".join(cells) + " |")
    return lines


def main() -> int:
    """Print, or write into the page."""
    parser = page_parser(__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=32768)
    arguments = parser.parse_args()
    print_or_write(table(arguments.tokens), CUDA_PAGE, "predictions", arguments.write)
    return 0


if __name__ == "__main__":
    sys.exit(main())
