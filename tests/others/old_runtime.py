"""Whether an ONNX Runtime runs graphs, and how far its logits are from expected ones: FOLDER FILE…,
where FOLDER has its packages and each graph's expected logits lie beside it; run by an
interpreter that has NumPy."""

import json
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])

import numpy as np
import onnxruntime as ort

TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
ort.set_default_logger_severity(4)
found = {"version": ort.__version__}
for graph in map(Path, sys.argv[2:]):
    try:
        session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
        ids = np.arange(3, 15)[None]
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        for node in session.get_inputs():
            if node.name.startswith("past_"):
                shape = (1, node.shape[1], 0, node.shape[3])
                feed[node.name] = np.zeros(shape, TYPES[node.type])
        (logits,) = session.run(["logits"], feed)
        wanted = np.load(graph.with_suffix(".npy"))
        found[str(graph)] = float(np.linalg.norm(logits - wanted) / np.linalg.norm(wanted))
    except Exception as error:
        found[str(graph)] = str(error)
print(json.dumps(found))
