"""The streamed decoder against transformers, in float32."""

import pytest
import torch

from edgepack.checkpoint import open_checkpoint
from edgepack.core import plugins
from edgepack.model.block import KeyValueCache, attention
from edgepack.model.decoder import Decoder
from tests.support.tiny import LLAMA3, make_model

TOLERANCE = 1e-4  # logits are of order 1 to 10; float32 sums in another order differ by 1e-6
LENGTH = 48
VARIANTS = {
    "untied": ("llama", {"tied": False}),
    "multi-head": ("llama", {"kv_heads": 4}),
    "multi-query": ("llama", {"kv_heads": 1}),
    "wide heads": ("llama", {"head_dim": 32}),
    "narrow heads": ("mistral", {"head_dim": 8}),
    "llama biases": ("llama", {"attention_bias": False, "rms_norm_eps": 1e-3}),
    "llama3 rope": ("llama", {"rope_parameters": LLAMA3}),
    "linear rope": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0}},
    ),
    "long rope": ("qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "window": ("mistral", {"sliding_window": 7}),
    "window of one": ("mistral", {"sliding_window": 1}),
    "wider window": ("mistral", {"sliding_window": 200}),
    "no window": ("mistral", {"sliding_window": None}),
    "qwen3 heads": ("qwen3", {"head_dim": 32, "tied": False}),
    "q·k as it is": ("granite", {"attention_multiplier": 1.0}),
    "float16": ("qwen2", {"dtype": torch.float16}),
}
FAMILIES = {
    f"{family} {'tied' if tied else 'untied'}": (family, {"tied": tied})
    for family in plugins.names("architectures")
    for tied in (True, False)
}
CASES = FAMILIES | VARIANTS


def build(folder, case: str):
    """(edgepack's decoder, transformers' model in float32) of the same files."""
    family, options = CASES[case]
    model = make_model(folder, family, **options).float()
    return Decoder(open_checkpoint(str(folder))), model


def some_tokens(vocabulary: int, rows: int = 2, length: int = LENGTH) -> torch.Tensor:
    return torch.randint(vocabulary, (rows, length), generator=torch.Generator().manual_seed(3))


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers(tmp_path, case):
    decoder, model = build(tmp_path, case)
    tokens = some_tokens(decoder.dimensions.vocab_size)
    expected = model(tokens).logits
    found = decoder.logits(tokens)
    assert expected.std() > 0.5  # a flat model would agree with anything
    assert (found - expected).abs().max() < TOLERANCE


@torch.no_grad()
def test_the_window_matters():
    q, k, v = torch.randn(3, 1, 2, 12, 8, generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(attention(q, k, v, 4), attention(q, k, v, None))
    assert torch.equal(attention(q, k, v, 12), attention(q, k, v, None))


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(
    "case", ["llama tied", "multi-head", "multi-query", "window", "window of one", "qwen3 heads"]
)
@pytest.mark.parametrize("steps", [[1] * LENGTH, [20] + [1] * 28, [5, 11, 32]], ids=repr)
def test_decoding_with_a_cache_is_the_full_forward(tmp_path, case, steps):
    decoder, _ = build(tmp_path, case)
    d = decoder.dimensions
    tokens = some_tokens(d.vocab_size)
    shape = (len(tokens), d.num_key_value_heads, LENGTH, d.head_dim)
    caches = [
        KeyValueCache(torch.empty(shape), torch.empty(shape)) for _ in range(d.num_hidden_layers)
    ]
    blocks = [decoder.block(i) for i in range(d.num_hidden_layers)]
    embedding, head, parts = decoder.embedding(), decoder.head(), []
    for part in tokens.split(steps, dim=1):
        x = embedding[part]
        for block, cache in zip(blocks, caches, strict=True):
            x = block(x, cache=cache)
        parts.append(head(x))
    assert (torch.cat(parts, dim=1) - decoder.logits(tokens)).abs().max() < TOLERANCE


@torch.no_grad()
def test_replaced_weights_take_the_place_of_the_checkpoint_s(tmp_path):
    decoder, model = build(tmp_path, "qwen2 tied")
    names = ["model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight"]
    replaced = {}
    for name in names:
        value = model.get_parameter(name)
        value.mul_(1.25)
        replaced[name] = value.clone
    tokens = some_tokens(decoder.dimensions.vocab_size)
    found = Decoder(decoder.checkpoint, replaced).logits(tokens)
    assert (found - model(tokens).logits).abs().max() < TOLERANCE
    assert (found - decoder.logits(tokens)).abs().max() > 0.1


@torch.no_grad()
def test_products_are_computed_in_the_type_that_matrices_are_kept_in(tmp_path):
    decoder, _ = build(tmp_path, "llama tied")
    block, head = decoder.block(0), decoder.head()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, decoder.dimensions.hidden_size, generator=generator)
    half, role = block.multiplying(torch.bfloat16), "attn_q"
    W = block.weights[role]
    expected = (x.bfloat16().float() @ W.bfloat16().float().T).bfloat16().float()
    torch.testing.assert_close(half.linear(role, x), expected, rtol=2**-7, atol=1e-4)
    assert half(x).dtype == torch.float32
    assert {w.dtype for k, w in half.weights.items() if k not in block.linears} == {torch.float32}
    torch.testing.assert_close(half(x), block(x), rtol=0.05, atol=0.05)
    assert not torch.equal(half(x), block(x))
    rounded = head.multiplying(torch.bfloat16)
    assert rounded(x).dtype == torch.float32
    p, q = (h(x).log_softmax(-1) for h in (head, rounded))
    assert 0 < float((p.exp() * (p - q)).sum(-1).mean()) < 1e-3
