"""Time and peak memory of the quickstart's build, from an empty cache.

    python -m benchmarks.quickstart [--keep CACHE]

Wall time of `edgepack build quickstart.yaml --target gguf` as its own process, and the largest
resident set the system saw in it (mapped model files included), beside `edgepack plan`'s.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import edgepack

RECIPE = Path(__file__).parent.parent / "edgepack/recipe/examples/quickstart.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--keep", type=Path, help="Leave the cache here, for a quickstart to use.")
    keep: Path | None = parser.parse_args().keep
    if keep is not None and keep.exists():
        parser.error(f"{keep} exists: the cache has to be an empty one")
    expected = edgepack.plan(RECIPE).memory
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"EDGEPACK_CACHE": str(keep or f"{folder}/cache")}
        command = [sys.executable, "-m", "edgepack", "build", str(RECIPE), "--target", "gguf"]
        start = time.monotonic()
        done = subprocess.run(
            [*command, "--out", f"{folder}/out", "--json"],
            env=environment,
            stdout=subprocess.PIPE,
            check=True,
        )
        seconds = time.monotonic() - start
    results = json.loads(done.stdout)["measured"]["results"]
    kibibytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(f"{os.cpu_count()} cores: {seconds / 60:.1f} minutes, peak {kibibytes / 1e6:.2f} GB")
    print(f"edgepack plan expects a peak of {expected / 1e9:.2f} GB")
    for name, r in results.items():
        print(f"{name}: {r['bytes'] / 1e6:.1f} MB, KL {r['kl_mean']:.4f}, top-1 {r['top1']:.1%}")


if __name__ == "__main__":
    main()
