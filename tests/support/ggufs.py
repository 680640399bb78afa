"""GGUF files of random models: written, run in llama.cpp, compared."""

import copy

import numpy as np
import pytest
import torch

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
