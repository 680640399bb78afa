"""README.md of an ONNX folder: a model card for the hub, and how each runtime opens it."""

from __future__ import annotations

from pathlib import Path

from edgepack.checkpoint import Checkpoint
from edgepack.export._onnx_graph import Graph
from edgepack.export.profiles import GraphOptions
from edgepack.export.requirements import oldest_version

CARD = """---
library_name: transformers.js
pipeline_tag: text-generation
tags: [onnx, edgepack]
---

# {title}

Made with edgepack from `{model}`; `report.md` says how, how large it is, and how close to the
original. The graph knows {context} positions{rows} and needs ONNX Runtime {version} or later.
"""
GENAI = """
```python
import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"           # see Privacy
import onnxruntime_genai as og                      # pip install onnxruntime-genai

model = og.Model(".")
tokenizer = og.Tokenizer(model)
params = og.GeneratorParams(model)
params.set_search_options(max_length=256)
generator = og.Generator(model, params)
generator.append_tokens(tokenizer.encode("The capital of France is"))
while not generator.is_done():
    generator.generate_next_token()
print(tokenizer.decode(generator.get_sequence(0)))
```
"""
OPTIMUM = """
```python
# pip install optimum-onnx onnxruntime 'transformers<4.58'
from optimum.onnxruntime import ORTModelForCausalLM

model = ORTModelForCausalLM.from_pretrained(".", subfolder="{subfolder}", file_name="{file}")
```
"""
JAVASCRIPT = """
## JavaScript

```js
import {{ pipeline }} from "@huggingface/transformers"; // {where}

const generate = await pipeline("text-generation", "FOLDER", {{ dtype: "{dtype}" }});
console.log(await generate([{{ role: "user", content: "Hello!" }}], {{ max_new_tokens: 64 }}));
```
"""
PRIVACY = """
## Privacy

These files send nothing, and edgepack has no telemetry of its own. The official packages of
onnxruntime (1.29 or later) and onnxruntime-genai (0.18) keep an identifier of the device and send
usage data to Microsoft, unless `ORT_DISABLE_TELEMETRY=1` is in the environment before they are
loaded. edgepack sets it in everything that it starts. onnxruntime-web has none. `sbom.cdx.json`
lists the software that made these files.
"""
FACTORS = """
The factors L and R are inputs of the graph, so that a page can replace them. Their values are in
`factors.safetensors`, and every call has to give them:

```js
import {{ Tensor }} from "@huggingface/transformers";

async function factors(url) {{
  const bytes = await (await fetch(url)).arrayBuffer();
  const start = 8 + Number(new DataView(bytes).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(bytes.slice(8, start)));
  const values = {{}};
  for (const [name, {{ shape, data_offsets }}] of Object.entries(header)) {{
    if (name === "__metadata__") continue;
    const part = bytes.slice(start + data_offsets[0], start + data_offsets[1]);
    const data = globalThis.Float16Array ? new Float16Array(part) : new Uint16Array(part);
    values[name] = new Tensor("float16", data, shape);
  }}
  return values;
}}
const values = await factors("FOLDER/factors.safetensors");
const forward = generate.model.forward.bind(generate.model);
generate.model.forward = (inputs) => forward({{ ...inputs, ...values }});
```
"""


def card(
    checkpoint: Checkpoint, path: Path, dtype: str, graph: Graph, options: GraphOptions
) -> str:
    """Text of the model card; the graph is in a subfolder of the output folder."""
    profile, model = options.profile, str(checkpoint.source["model"])
    given = profile.given_factors and graph.factors
    sections = [CARD]
    if not given:
        sections += ["\n## Python\n", GENAI, *([] if profile.few_logits else [OPTIMUM])]
    sections += [JAVASCRIPT, FACTORS] if given else [JAVASCRIPT]
    sections += [PRIVACY]
    (major, minor), _ = oldest_version(graph, half=options.half)
    return "".join(sections).format(
        title=f"{Path(model).name.removesuffix('.gguf')} for ONNX",
        model=model,
        context=options.context,
        rows="" if profile.left_padding else ", reads one row at a time (no padded batches),",
        version=f"{major}.{minor}",
        subfolder=path.parent.name,
        file=path.name,
        dtype=dtype,
        where="a browser" if profile.few_logits else "node or browser",
    )
