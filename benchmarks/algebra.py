"""Cost of all pairs of many sliders: `python -m benchmarks.algebra`.

Synthesises the factors of 50 rank-4 sliders on every linear layer and convolution of SDXL's UNet, one layer at a time
(all of them together are 2.5 GB), and computes all pairwise weight-level quantities.  Prints seconds and peak memory.
"""

import math
import resource
import time
from collections.abc import Iterator

import torch
from jsonargparse import auto_cli

from sliders.algebra.lowrank import LowRank
from sliders.algebra.pairs import Layer, pairwise_layers

SDXL: dict[tuple[int, ...], int] = {
    (1280, 1280): 381,
    (1280, 2048): 120,
    (640, 640): 70,
    (10240, 1280): 60,
    (1280, 5120): 60,
    (640, 2048): 20,
    (1280, 1280, 3, 3): 11,
    (5120, 640): 10,
    (640, 2560): 10,
    (320, 320, 3, 3): 8,
    (640, 640, 3, 3): 8,
    (320, 1280): 5,
    (640, 1280): 5,
    (1280, 2560, 3, 3): 2,
    (1280, 2560, 1, 1): 2,
    (320, 640, 3, 3): 2,
    (320, 640, 1, 1): 2,
    (320, 4, 3, 3): 1,
    (1280, 320): 1,
    (1280, 2816): 1,
    (640, 320, 3, 3): 1,
    (640, 320, 1, 1): 1,
    (1280, 640, 3, 3): 1,
    (1280, 640, 1, 1): 1,
    (1280, 1920, 3, 3): 1,
    (1280, 1920, 1, 1): 1,
    (640, 1920, 3, 3): 1,
    (640, 1920, 1, 1): 1,
    (640, 1280, 3, 3): 1,
    (640, 1280, 1, 1): 1,
    (640, 960, 3, 3): 1,
    (640, 960, 1, 1): 1,
    (320, 960, 3, 3): 1,
    (320, 960, 1, 1): 1,
    (4, 320, 3, 3): 1,
}
"""Shapes of its 794 linear layers and convolutions in diffusers, and how many there are of each."""


def synthetic(sliders: int, rank: int, copies: int) -> Iterator[Layer]:
    """Random factors of all layers, each made when it is asked for."""
    for shape, count in SDXL.items():
        for k in range(count * copies):
            up = torch.randn(sliders, shape[0], rank)
            down = torch.randn(sliders, rank, math.prod(shape[1:]))
            yield f"{shape}.{k}", [LowRank(b, a, shape) for b, a in zip(up, down, strict=True)]


def main(sliders: int = 50, rank: int = 4, threads: int = 2, copies: int = 1) -> None:
    """Time all pairs.

    Args:
        sliders: how many.
        rank: of each.
        threads: that torch uses.
        copies: of the UNet's layers; 3 make 2,382 of them.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    start = time.perf_counter()
    for _ in synthetic(sliders, rank, copies):
        pass
    making = time.perf_counter() - start
    start = time.perf_counter()
    pairs = pairwise_layers([str(i) for i in range(sliders)], synthetic(sliders, rank, copies))
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux gives KiB
    layers = copies * sum(SDXL.values())
    print(f"{sliders * (sliders - 1) // 2} pairs of {sliders} rank-{rank} sliders on {layers} layers")
    print(f"{seconds:.1f} s on {threads} threads, {making:.1f} s of it drawing the factors; peak {peak:.2f} GB")
    mean = float(pairs.interference[~torch.eye(sliders, dtype=torch.bool)].mean())
    print(f"mean predicted interference of two random sliders: {mean:.4f}")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
