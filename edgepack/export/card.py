"""README.md of an ONNX folder: a model card for the hub, and how each runtime opens it."""

from __future__ import annotations

from pathlib import Path

from edgepack.checkpoint import Checkpoint

CARD = """---
library_name: transformers.js
pipeline_tag: text-generation
tags: [onnx, edgepack]
---

# {title}

Made with edgepack from `{model}`; `report.md` says how, how large it is, and how close to the
original. The graph knows {context} positions.

## Python

```python
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

```python
# pip install optimum-onnx onnxruntime 'transformers<4.58'
from optimum.onnxruntime import ORTModelForCausalLM

model = ORTModelForCausalLM.from_pretrained(".", subfolder="{subfolder}", file_name="{file}")
```

## JavaScript

```js
import {{ pipeline }} from "@huggingface/transformers"; // node or browser

const generate = await pipeline("text-generation", "FOLDER", {{ dtype: "{dtype}" }});
console.log(await generate([{{ role: "user", content: "Hello!" }}], {{ max_new_tokens: 64 }}));
```
"""


def card(checkpoint: Checkpoint, graph: Path, dtype: str, context: int) -> str:
    """Text of the card of a graph that lies in a folder of the output folder."""
    model = str(checkpoint.source["model"])
    return CARD.format(
        title=f"{Path(model).name.removesuffix('.gguf')} for ONNX",
        model=model,
        context=context,
        subfolder=graph.parent.name,
        file=graph.name,
        dtype=dtype,
    )
