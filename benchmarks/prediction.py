"""How good predicted speeds are: each of several files is predicted from a profile without it.

    python -m benchmarks.prediction [--rounds 5] [--threads N]

SmolLM2-135M-Instruct in one type for the blocks and one for the embeddings, rounded by stock (the
speed is the same for all values). `edgepack bench` times all files in turns, and the products of
their types. A file's speed is predicted from the bandwidth alone, from the products of its types,
and with the correction that the other files give; the table has predicted / measured − 1.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.same_type import MODEL, RESULTS
from edgepack.bench import bench
from edgepack.checkpoint import Checkpoint, open_checkpoint
from edgepack.core.speeds import Speed
from edgepack.core.tables import markdown
from edgepack.device_profile.prediction import predict
from edgepack.device_profile.profile import DeviceProfile
from edgepack.export.gguf import write_model
from edgepack.runtimes.ggml import stock_quantize

FILES = (
    *(("q8_0", "q8_0"), ("q5_1", "q8_0"), ("q5_0", "q8_0"), ("q4_1", "q8_0"), ("q4_0", "q8_0")),
    *(("q4_0", "q4_0"), ("iq4_nl", "q8_0"), ("mxfp4", "q8_0"), ("q2_0", "q8_0")),
)
"""Types of blocks and embeddings."""
PROMPT, DECODE = 256, 64


def write(model: Checkpoint, blocks: str, outside: str, path: Path) -> Path:
    """A file with these types."""
    matrices = [spec for spec in model.specs.values() if len(spec.shape) > 1]
    types = {spec.name: outside if spec.block is None else blocks for spec in matrices}

    def load(name: str) -> Tensor:
        W = model.tensor(name).float()
        return torch.from_numpy(
            stock_quantize(types[name], W.numpy(), torch.ones(W.shape[1]).numpy())
        )

    write_model(path, model, types, load)
    return path


def row(found: dict[str, Any], index: int) -> dict[str, Any]:
    """One file: what was measured, and predicted without it."""
    models = found["models"]
    own, others = models[index], [one for one in models if one is not models[index]]
    threads = own["timings"][0]["threads"]
    profile = DeviceProfile.model_validate(found | {"models": others})
    speeds = predict(profile.models[0].work.model_validate(own["work"]), profile)
    result: dict[str, Any] = {"file": own["name"].removesuffix(".gguf"), "threads": threads}
    for kind, speed in (("decode", speeds.decode), ("prompt", speeds.prompt)):
        timing = next(one for one in own["timings"] if one["case"]["kind"] == kind)
        seconds = sorted(timing["seconds"])
        measured = timing["case"]["tokens"] / seconds[len(seconds) // 2]
        assert isinstance(speed, Speed)
        assert speed.correction is not None
        result[kind] = {
            "measured": measured,
            "limit": speed.limit / measured - 1,
            "products": speed.tokens_per_second / speed.correction / measured - 1,
            "corrected": speed.tokens_per_second / measured - 1,
        }
    return result


def table(rows: list[dict[str, Any]]) -> list[str]:
    head = ["blocks, embeddings"]
    for kind in ("decode", "prompt"):
        head += [f"{kind}, tokens/s", "limit", "products", "corrected"]
    lines = [head]
    for one in rows:
        line = [one["file"].replace("-", ", ")]
        for kind in ("decode", "prompt"):
            line.append(f"{one[kind]['measured']:.1f}")
            line += [f"{one[kind][key]:+.0%}" for key in ("limit", "products", "corrected")]
        lines.append(line)
    return markdown(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    model = open_checkpoint(MODEL)
    with tempfile.TemporaryDirectory() as folder:
        paths = [write(model, *kinds, Path(folder) / f"{'-'.join(kinds)}.gguf") for kinds in FILES]
        result = bench(
            paths,
            threads=(options.threads,),
            prompts=(PROMPT,),
            decode=DECODE,
            rounds=options.rounds,
        )
    found = result.model_dump(mode="json")
    rows = [row(found, index) for index in range(len(FILES))]
    (RESULTS / "prediction.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    lines = [*table(rows), *(["", *result.remarks] if result.remarks else [])]
    print("\n".join(lines))
    (RESULTS / "prediction.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
