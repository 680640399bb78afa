"""Tokens that onnxruntime-genai says after some, with and without the folder's adapter:
FOLDER COUNT ID…; run by an interpreter that has it."""

import json
import sys
from pathlib import Path

import onnxruntime_genai as og

folder, count, *ids = sys.argv[1:]
ids = [int(i) for i in ids]
model = og.Model(folder)


def said(adapter):
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=len(ids) + int(count))
    generator = og.Generator(model, params)
    if adapter:
        generator.set_active_adapter(adapters, "own")
    generator.append_tokens(ids)
    while not generator.is_done():
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)[len(ids) :]]


found = [said(False)]
file = Path(folder, "factors.onnx_adapter")
if file.exists():
    adapters = og.Adapters(model)
    adapters.load(str(file), "own")
    found.append(said(True))
print(json.dumps(found))
