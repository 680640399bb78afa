"""A program with nothing but ONNX Runtime, as on a phone: trains with the graph in a folder.

    python -P benchmarks/_training_step.py FOLDER ROWS.json STEPS RATE THREADS

Prints seconds, bytes of memory and the losses as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime

STATE = ("theta", "m", "v")


def memory(entry: str) -> int:
    """Bytes from /proc/self/status: VmRSS now, VmHWM at the peak."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (line,) = (line for line in lines if line.startswith(entry))
    return 1024 * int(line.split()[1])


def main() -> None:
    folder, texts, steps, rate, threads = sys.argv[1:]
    about = json.loads(Path(folder, "training.json").read_text(encoding="utf-8"))
    rows = json.loads(Path(texts).read_text(encoding="utf-8"))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = int(threads)
    options.enable_mem_reuse = about["length"] is not None
    before, start = memory("VmRSS"), time.perf_counter()
    session = onnxruntime.InferenceSession(Path(folder, "training.onnx"), options)
    found = {"before": before, "load": time.perf_counter() - start, "idle": memory("VmRSS")}
    theta = np.fromfile(Path(folder, "theta.f32"), np.float32)
    state = dict(zip(STATE, (theta, np.zeros_like(theta), np.zeros_like(theta)), strict=True))
    names, losses, times = [node.name for node in session.get_outputs()], [], []
    for step in range(int(steps)):
        ids, labels = (np.array([part], np.int64) for part in rows[step % len(rows)])
        scalars = {"lr": np.array(rate, np.float32), "step": np.array(step + 1, np.float32)}
        start = time.perf_counter()
        values = session.run(names, {**state, **scalars, "input_ids": ids, "labels": labels})
        times.append(time.perf_counter() - start)
        out = dict(zip(names, values, strict=True))
        state = {name: out[f"{name}_out"] for name in STATE}
        losses.append(float(out["loss"]))
    print(json.dumps(found | {"peak": memory("VmHWM"), "times": times, "losses": losses}))


if __name__ == "__main__":
    main()
