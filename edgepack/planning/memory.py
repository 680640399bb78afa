"""How much memory a build will take: the largest of its stages, each bounded by one block.

A model of the code, not a measurement; `benchmarks/quickstart.py` prints both.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

from edgepack.calibration import self_text
from edgepack.calibration.sweep import LABELS_AT_ONCE
from edgepack.calibration.text import counts
from edgepack.checkpoint.save import SHARD
from edgepack.core.executor import AT_ONCE
from edgepack.core.weights import WeightSpec
from edgepack.model.decoder import fits_in_memory
from edgepack.model.stream import TOKENS_AT_ONCE
from edgepack.planning.plan import Plan
from edgepack.recover.stage import IN_MEMORY
from edgepack.runtimes.models import RUNTIMES

_PROCESS = 1150 << 20  # Python, torch, transformers, numba and what the allocator keeps
_FLOAT, _DOUBLE = 4, 8
_PEERS = 2  # stock files, usually
_SCALED = 32  # weights that share a scale, at the fewest


def peak(plan: Plan) -> int:
    """Expected peak resident bytes of `edgepack.build`."""
    packing = (_sweep, _labels, _decompose, _recover, _measure)
    checkpoint = (_write_text, _slice, _score)
    stages = (_write_text, _slice, *packing) if plan.packs else checkpoint
    return _PROCESS + _rotation(plan) + max(stage(plan) for stage in stages)


def _rotation(plan: Plan) -> int:
    """The matrix that every weight is rotated by as it is read."""
    compress, d = plan.recipe.compress, plan.checkpoint.dimensions
    if compress is None or compress.rotate == "none" or d.tie_word_embeddings:
        return 0
    return _DOUBLE * d.hidden_size**2


def _blocks(plan: Plan) -> dict[int, list[WeightSpec]]:
    found: dict[int, list[WeightSpec]] = {}
    for spec in plan.checkpoint.specs.values():
        if spec.block is not None and len(spec.shape) == 2:
            found.setdefault(spec.block, []).append(spec)
    return found


def _outside(plan: Plan) -> int:
    """Bytes of embedding and head as float32."""
    specs = plan.checkpoint.specs.values()
    return _FLOAT * sum(s.numel for s in specs if s.block is None)


def _write_text(plan: Plan) -> int:
    """Weights (all, if they fit), keys and values, probabilities."""
    if plan.calibrate is None or plan.recipe.calibrate.source != "self":
        return 0
    d, decoder = plan.dense.dimensions, plan.dense
    options = plan.recipe.calibrate
    batch = len(self_text.batches(decoder, sum(counts(options, d)), options.sequence_length)[0])
    cache = 2 * d.num_hidden_layers * d.num_key_value_heads * d.head_dim * options.sequence_length
    blocks = [sum(s.numel for s in specs) for specs in _blocks(plan).values()]
    weights = sum(blocks) if fits_in_memory(decoder) else max(blocks)
    return _outside(plan) + _FLOAT * (weights + batch * (cache + 5 * d.vocab_size))


def _slice(plan: Plan) -> int:
    """C with its eigenvectors, a block, activations of a batch; then a shard, and the embeddings
    while they are rotated. What fine-tuning takes is less, but for its factors."""
    if plan.slice is None:
        return 0
    d = plan.dense.dimensions
    tokens = max(TOKENS_AT_ONCE, plan.recipe.calibrate.sequence_length)
    activations = tokens * (6 * d.hidden_size + 4 * d.intermediate_size)
    specs = plan.dense.checkpoint.specs.values()
    block = sum(s.numel for s in specs if s.block == 0)
    sweep = 6 * _DOUBLE * d.hidden_size**2 + _FLOAT * (2 * block + activations)
    return max(sweep, SHARD + 3 * _FLOAT * d.vocab_size * d.hidden_size)


def _sweep(plan: Plan) -> int:
    """A block, its Hessians in float64, and the activations of a batch with their gradients."""
    if plan.calibrate is None:
        return 0
    d = plan.checkpoint.dimensions
    tokens = max(TOKENS_AT_ONCE, plan.recipe.calibrate.sequence_length)
    heads = d.num_attention_heads * d.head_dim
    activations = tokens * (10 * d.hidden_size + 6 * heads + 8 * d.intermediate_size)
    weights = max(sum(s.numel for s in specs) for specs in _blocks(plan).values())
    sides = slice(0, 2) if plan.objective == "model" else slice(1, 2)
    moments = max(
        sum(n**2 for s in specs for n in s.shape[sides]) for specs in _blocks(plan).values()
    )
    return _FLOAT * (weights + activations) + 2 * _DOUBLE * moments


def _labels(plan: Plan) -> int:
    """The head and the logits of a few tokens."""
    if plan.calibrate is None:
        return 0
    d = plan.checkpoint.dimensions
    return _outside(plan) + _FLOAT * 5 * LABELS_AT_ONCE * d.vocab_size


def _decompose(plan: Plan) -> int:
    """A few matrices with their copies and candidates, and the factors of their Hessians."""
    at_once = min(AT_ONCE, os.cpu_count() or 1)
    groups = [*_blocks(plan).values()]
    groups += [[s] for s in plan.checkpoint.specs.values() if s.block is None]
    model = plan.objective == "model"
    each = ([_decomposing(spec, two_sided=model) for spec in group] for group in groups)
    return max(sum(sorted(sizes)[-at_once:]) for sizes in each)


def _decomposing(spec: WeightSpec, *, two_sided: bool) -> int:
    square = spec.shape[-1] ** 2
    if two_sided and spec.block is not None and len(spec.shape) == 2:
        square += spec.shape[0] ** 2
    return 6 * _FLOAT * spec.numel + 9 * _DOUBLE * square


def _recover(plan: Plan) -> int:
    """Codes, what is trained with its gradients and moments, a step's block inputs, both heads."""
    options, d = plan.recipe.recover, plan.checkpoint.dimensions
    if plan.recover is None or options is None:
        return 0
    elements = sum(s.numel for specs in _blocks(plan).values() for s in specs)
    trained = elements // _SCALED + sum(
        c.rank * sum(plan.checkpoint.specs[n].shape) for n, c in plan.choices.items()
    )
    states = d.num_hidden_layers * options.tokens * d.hidden_size
    logits = 5 * LABELS_AT_ONCE * d.vocab_size
    heads = 10 * d.vocab_size * d.hidden_size
    block = 6 * elements // d.num_hidden_layers
    return min(elements, IN_MEMORY) + 24 * trained + _FLOAT * (states + logits + block) + heads


def _score(plan: Plan) -> int:
    """Both models as float32, or of one that is too large a block with embeddings and head."""
    if not plan.recipe.export.measure.tokens:
        return 0
    total = 0
    for decoder in (plan.dense, plan.decoder):
        specs = decoder.checkpoint.specs.values()
        kept = [s for s in specs if fits_in_memory(decoder) or s.block in (None, 0)]
        total += _FLOAT * sum(s.numel for s in kept)
    logits = plan.recipe.export.measure.context * plan.checkpoint.dimensions.vocab_size
    return total + 5 * _FLOAT * logits


def _measure(plan: Plan) -> int:
    """The files side by side and each runtime's logits and scratch space. llama.cpp maps files (the
    system may drop those pages); ONNX Runtime copies them, what is f16 as float32."""
    options = plan.recipe.export.measure
    if not options.tokens or find_spec(RUNTIMES[plan.target].module) is None:
        return 0
    elements = sum(s.numel for s in plan.checkpoint.specs.values())
    logits = _FLOAT * options.context * plan.checkpoint.dimensions.vocab_size
    own = sum(plan.bytes_by_part().values())
    if plan.target == "onnx":
        files = 2 if options.stock else 1
        return (2 + _FLOAT) * elements + files * 2 * own + 2 * (1 + files) * logits
    files = 1 + (_PEERS if options.stock else 0)
    return 2 * elements + files * own + 3 * (1 + files) * logits
