"""Tokens that optimum's ORTModelForCausalLM says after rows of them, as a batch padded on the left:
FOLDER FILE COUNT ROWS (JSON); run by an interpreter that has it."""

import json
import sys

import torch
from optimum.onnxruntime import ORTModelForCausalLM

folder, file, count, rows = sys.argv[1:]
rows = json.loads(rows)
model = ORTModelForCausalLM.from_pretrained(folder, subfolder="onnx", file_name=file)
width = max(map(len, rows))
ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
out = model.generate(
    input_ids=ids,
    attention_mask=mask,
    max_new_tokens=int(count),
    min_new_tokens=int(count),
    do_sample=False,
)
print(json.dumps(out[:, width:].tolist()))
