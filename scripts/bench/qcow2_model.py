#!/usr/bin/env python3
"""The long run of the qcow2 model test: random operations on two-layer chains of every shape against a byte array.

    scripts/bench/qcow2_model.py [--operations N] [--seed S] [--shape NAME] [--folder DIR]

At least N operations (default 100000) are done in all, a fair part on each shape; qemu-img checks and reads every
image many times. The first difference ends the run with the shape, the seed and the operation.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.engine.drivers.qcow2.model import play, shapes

SMALL_CACHE = {"l2-cache-size": 2048, "l2-cache-entry-size": 512, "refcount-cache-size": 1}
"""So small that metadata is evicted all the time."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Random operations on qcow2 chains, checked against a model")
    parser.add_argument("--operations", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--shape", help="only shapes whose name contains this")
    parser.add_argument("--folder", help="where the images are made (default: a temporary folder)")
    args = parser.parse_args()
    chosen = [shape for shape in shapes() if not args.shape or args.shape in shape.name]
    if not chosen:
        parser.error(f"no shape is called {args.shape}; there are {', '.join(s.name for s in shapes())}")
    # Two-megabyte clusters cost most and have the fewest states: they get a tenth of the others' share.
    weights = [1 if shape.cluster > 1 << 20 else 10 for shape in chosen]
    print(f"seed {args.seed}")
    done = 0
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for shape, weight in zip(chosen, weights, strict=True):
            share = -(-args.operations * weight // sum(weights))
            started = time.monotonic()
            count = turn = 0
            while count < share:
                cache = SMALL_CACHE if turn % 2 else None
                seed = args.seed + turn
                try:
                    count += play(shape, Path(folder), seed, min(2000, max(share - count, 8)), 8, cache)
                except BaseException:
                    print(f"{shape.name}: failed with seed {seed}, cache {cache}", file=sys.stderr)
                    raise
                turn += 1
            done += count
            print(f"{shape.name:20} {count:8} operations  {time.monotonic() - started:7.1f} s", flush=True)
    print(f"{done} operations, no difference")
    return 0


if __name__ == "__main__":
    sys.exit(main())
