"""GGUF files of random models: written, run in llama.cpp, compared."""

import copy

import gguf
import numpy as np
import pytest
import torch
from gguf import GGUFValueType as Type

from edgepack.core import plugins

TOKENS = np.random.default_rng(0).integers(3, 290, 64).tolist()
INT8 = 0.06  # seen: 0.038


def quantize(form, W):
    return plugins.find("formats", form).quantize(W)


def q_of(weights):
    return lambda name: weights[name].Q


@torch.no_grad()
def expected(model, weights=None):
    model = copy.deepcopy(model)
    for name, value in model.named_parameters():
        if weights and name in weights:
            value.copy_(weights[name].dense())
    return model(torch.tensor([TOKENS])).logits[0].numpy()


def in_llama_cpp(base, adapter=None):
    pytest.importorskip("llama_cpp")
    from edgepack.runtimes.llama_cpp import LlamaCpp

    with LlamaCpp(base, adapter, context=64, threads=1) as runtime:
        return runtime.logits(TOKENS)


def distance(found, wanted):
    return np.sqrt(np.square(found - wanted).mean() / np.square(wanted).mean())


def rewritten(source, out, changes, *, tensors=True):
    """A copy of a GGUF with other metadata: `changes` are key → text, or (value, its type, the
    type of a list's elements), or None for a key that is left out."""
    reader = gguf.GGUFReader(source)
    kept = {
        key: (field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None)
        for key, field in reader.fields.items()
        if not key.startswith("GGUF.")
    }
    texts = {k: (v, Type.STRING, None) if isinstance(v, str) else v for k, v in changes.items()}
    writer = gguf.GGUFWriter(out, "")
    writer.kv_data[0].clear()  # the architecture comes with the others
    for key, entry in (kept | texts).items():
        if entry is not None:
            writer.add_key_value(key, *entry)
    for tensor in reader.tensors if tensors else ():
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out
