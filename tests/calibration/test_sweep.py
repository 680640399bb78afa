"""Calibration tokens, and H against autograd and hooks on the whole model in memory."""

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from edgepack.architectures.base import LINEAR_ROLES
from edgepack.calibration import openings, passes, self_text, sweep
from edgepack.calibration import text as calibration_text
from edgepack.calibration.groups import groups
from edgepack.calibration.moments import EMBEDDING, HEAD, load_hessian
from edgepack.calibration.sampling import sample
from edgepack.calibration.side_by_side import in_turn
from edgepack.checkpoint import open_checkpoint
from edgepack.core.progress import finish
from edgepack.core.weights import Hessian
from edgepack.errors import CalibrationError
from edgepack.model import stream
from edgepack.model.decoder import Decoder
from edgepack.model.stream import Activations, Tokens
from edgepack.recipe.sections import Calibrate
from edgepack.recipe.texts import source_path
from tests.support.dying import dies_before, files
from tests.support.tiny import CHAT, LAYER_NORM, TEXT, WITHOUT_EXPERTS, make_model

LENGTH = 40
ROUGH = ("opt", "gemma4_text", "qwen3_5_text")
"""Families in which rounding matters more: a ReLU switches at other places, Gemma 4's q·k are
divided by nothing, and a gated delta rule sums up over a sequence."""


@pytest.fixture(scope="module")
def decoder(tmp_path_factory) -> Decoder:
    folder = tmp_path_factory.mktemp("model")
    make_model(folder, layers=3)
    return Decoder(open_checkpoint(str(folder)))


def random_tokens(decoder: Decoder, train: int = 9, held_out: int = 3) -> Tokens:
    shape = (train + held_out, LENGTH)
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(decoder.dimensions.vocab_size, shape, generator=generator)
    return Tokens(ids[:train], ids[train:])


def small_batches(monkeypatch) -> None:
    """Several batches, the last one short, several draws of labels in each, weights clipped."""
    monkeypatch.setattr(passes, "MAX_TOKEN_WEIGHT", 1.5)
    monkeypatch.setattr(stream, "TOKENS_AT_ONCE", 4 * LENGTH)
    monkeypatch.setattr(passes, "LABELS_AT_ONCE", 70)


def load(folder: Path, decoder: Decoder) -> dict[tuple[str, str], Hessian]:
    """(file, role) → Hessian of everything a guided calibration leaves."""
    blocks = range(decoder.dimensions.num_hidden_layers)
    pairs = [(name, name) for name in (HEAD, EMBEDDING) if (folder / name).exists()]
    pairs += [(str(block), role) for block in blocks for role in decoder.block(block).linears]
    return {(file, role): load_hessian(folder / file, role) for file, role in pairs}


def embed(decoder: Decoder, rows: Tensor, tokens: Tokens) -> Tensor:
    """The first block's inputs for rows of the embedding ``[sequences, length, hidden]``."""
    places, per_layer = torch.arange(tokens.all.numel()).view(tokens.all.shape), None
    if decoder.dimensions.hidden_size_per_layer_input:
        per_layer = decoder.checkpoint.tensor(decoder.per_layer_table)[tokens.all]
    return decoder.embed(places, rows.flatten(0, 1), per_layer=per_layer)


def sampled_labels(decoder: Decoder, logits: Tensor, tokens: Tokens, seed: int) -> Tensor:
    """Labels as the sweep draws them: batch by batch, some tokens at a time."""
    parts = []
    for batch in stream.micro_batches(tokens):
        pieces = torch.split(logits[batch.rows].flatten(0, 1), passes.LABELS_AT_ONCE)
        seeds = np.random.SeedSequence([seed, batch.rows.start]).generate_state(len(pieces), "u8")
        for own, part in zip(seeds.tolist(), pieces, strict=True):
            parts.append(sample(part.softmax(-1), torch.Generator().manual_seed(own)))
    return torch.cat(parts)


def whole_model(
    decoder: Decoder, tokens: Tokens, seed: int, labels: Tensor | None = None
) -> tuple[dict[tuple[str, str], Hessian], Tensor]:
    """(Hessians, labels) with autograd through the whole model.

    Without `labels` the inputs of blocks are rounded to bfloat16 as the sweep stores them
    (the gradient passes as if they were not), and labels are drawn; with them, nothing is rounded.
    """

    def stored(x: Tensor) -> Tensor:
        return x if labels is not None else x + (x.bfloat16().float() - x).detach()

    seen: dict[tuple[str, str], tuple[Tensor, Tensor]] = {}
    embedded = decoder.embedding()[tokens.all].requires_grad_()
    x = stored(embed(decoder, embedded, tokens))
    for i in range(decoder.dimensions.num_hidden_layers):
        block = decoder.block(i)

        def linear(role: str, x: Tensor, i: int = i, apply: Callable = block.linear) -> Tensor:
            y = apply(role, x)
            y.retain_grad()
            seen[str(i), role] = x, y
            return y

        x = stored(block(x, linear=linear))
    head = decoder.head()
    normed = head.normalize(x)
    product = head.product(normed)
    product.retain_grad()
    logits = head.finish(product)
    seen[HEAD, HEAD] = normed, product
    drawn = sampled_labels(decoder, logits.detach(), tokens, seed) if labels is None else labels
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), drawn, reduction="sum").backward()
    train = len(tokens.train)
    found = {(EMBEDDING, EMBEDDING): embedding_hessian(embedded.grad.double(), tokens)}
    for key, (x, y) in seen.items():
        inputs, gradients = x.detach().double(), y.grad.double()
        weight = gradients.square().sum(-1)
        if key[1] == HEAD:
            rows = (inputs.square().sum(-1, keepdim=True) * gradients.square())[:train].sum((0, 1))
            sides = dict.fromkeys(("out_train", "out_held_out"), torch.diag(rows))
        else:
            weight, size = clipped(weight, tokens), clipped(inputs.square().sum(-1), tokens)
            sides = {
                "out_train": second_moment(gradients[:train], size[:train]),
                "out_held_out": second_moment(gradients[train:], size[train:]),
            }
        found[key] = Hessian(
            second_moment(inputs[:train], weight[:train]),
            second_moment(inputs[train:], weight[train:]),
            inputs[:train].square().mean((0, 1)),
            **{part: H / H.diagonal().mean() for part, H in sides.items()},
        )
    return found, drawn


def embedding_hessian(gradient: Tensor, tokens: Tokens) -> Hessian:
    """Second moments of the gradient at the embeddings' output, rows as often as they occur."""
    size, train = gradient.square().sum(-1), len(tokens.train)
    weight = clipped(size, tokens) / size
    seen = torch.zeros(int(tokens.all.max()) + 1).double()
    for token in tokens.train.flatten().tolist():
        seen[token] += 1
    return Hessian(
        second_moment(gradient[:train], weight[:train]),
        second_moment(gradient[train:], weight[train:]),
        gradient[:train].square().mean((0, 1)),
        torch.diag(seen + 0.5),
        torch.diag(seen + 0.5),
    )


def clipped(weight: Tensor, tokens: Tokens) -> Tensor:
    """Weights ``[sequences, length]``, each at most `MAX_TOKEN_WEIGHT` times its batch's mean."""
    parts = [weight[batch.rows] for batch in stream.micro_batches(tokens)]
    return torch.cat([part.clamp_max(passes.MAX_TOKEN_WEIGHT * part.mean()) for part in parts])


def second_moment(x: Tensor, weight: Tensor | None = None) -> Tensor:
    x = x.flatten(0, -2).double()
    scaled = x if weight is None else x * weight.reshape(-1, 1)
    return x.T @ scaled / len(x)


def assert_close(found: Hessian, expected: Hessian, tolerance: float, key: object) -> None:
    for part in ("train", "held_out", "imatrix", "out_train", "out_held_out"):
        if getattr(expected, part) is None:
            assert getattr(found, part) is None
            continue
        a, b = (getattr(H, part).double() for H in (found, expected))
        if a.dim() < b.dim():  # kept as a diagonal; tokens beyond the largest seen
            a, b = (a / a[0])[: len(b)], b.diagonal() / b[0, 0]
        assert (a - b).norm() <= tolerance * b.norm(), (key, part)


@pytest.mark.slow
@pytest.mark.parametrize("family", [*WITHOUT_EXPERTS, *LAYER_NORM])
def test_guided_hessians_are_those_of_autograd_on_the_whole_model(tmp_path, family, monkeypatch):
    small_batches(monkeypatch)
    make_model(tmp_path / "model", family, layers=3, tied=family == "llama")
    decoder = Decoder(open_checkpoint(str(tmp_path / "model")))
    tokens = random_tokens(decoder)
    finish(sweep.guided_hessians(decoder, tokens, tmp_path, seed=11, output_side=True))
    found = load(tmp_path, decoder)
    rounded, labels = whole_model(decoder, tokens, seed=11)
    exact, _ = whole_model(decoder, tokens, seed=11, labels=labels)
    calibrated = (*LINEAR_ROLES, HEAD, EMBEDDING)
    assert found.keys() == {key for key in rounded if key[1] in calibrated}
    for key, hessian in found.items():
        assert_close(hessian, rounded[key], 1e-4, key)  # the same numbers, summed otherwise
        # bfloat16 has 8 bits, and a weight squares
        assert_close(hessian, exact[key], 4e-2 if family in ROUGH else 2e-2, key)
    train, held_out = (getattr(rounded[HEAD, HEAD], part) for part in ("train", "held_out"))
    assert (train - held_out).norm() > 0.05 * train.norm()  # telling them apart means something


@pytest.mark.slow
def test_what_calibration_keeps_is_symmetric_semidefinite_and_only_that(tmp_path, decoder):
    finish(sweep.guided_hessians(decoder, random_tokens(decoder), tmp_path, seed=0))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0", "1", "2", HEAD]
    for hessian in load(tmp_path, decoder).values():
        assert hessian.out_train is None
        for H in (hessian.train, hessian.held_out):
            assert torch.equal(H, H.T)
            values = torch.linalg.eigvalsh(H.double())
            assert values.min() > -1e-5 * values.max()  # float32
        assert (hessian.imatrix >= 0).all()


@pytest.mark.slow
def test_another_seed_draws_other_labels(tmp_path, decoder):
    found = []
    for seed in (0, 1):
        (tmp_path / str(seed)).mkdir()
        finish(
            sweep.guided_hessians(decoder, random_tokens(decoder), tmp_path / str(seed), seed=seed)
        )
        found.append((tmp_path / str(seed) / HEAD).read_bytes())
    assert found[0] != found[1]


@torch.no_grad()
def test_layer_hessians_are_those_of_hooks_on_transformers(tmp_path, monkeypatch):
    small_batches(monkeypatch)
    model = make_model(tmp_path / "model", "qwen3").float()
    decoder = Decoder(open_checkpoint(str(tmp_path / "model")))
    tokens, index = random_tokens(decoder), 1
    seen: dict[str, Tensor] = {}
    layer = model.model.layers[index]
    names = {
        role: decoder.checkpoint.architecture.block[role].removesuffix(".weight")
        for role in decoder.block(index).linears
    }
    modules = {role: layer.get_submodule(name) for role, name in names.items()}
    modules |= {"block": layer.input_layernorm, HEAD: model.lm_head, "last": model.model.norm}
    for role, module in modules.items():
        module.register_forward_pre_hook(lambda _, x, role=role: seen.__setitem__(role, x[0]))
    model(tokens.all)
    shape = (*tokens.all.shape, decoder.dimensions.hidden_size)
    states = {}
    for name in ("block", "last"):
        states[name] = Activations(tmp_path / name, shape)
        states[name].write([seen[name]])
    batches = stream.micro_batches(tokens)
    found = sweep.layer_hessians(decoder.block(index), states["block"], batches)
    found |= sweep.head_moments(decoder.head(), states["last"], batches)
    assert set(found) == {*names, HEAD}
    train = len(tokens.train)
    for role, hessian in found.items():
        x = seen[role]
        expected = Hessian(
            second_moment(x[:train]),
            second_moment(x[train:]),
            x[:train].double().square().mean((0, 1)),
        )
        assert_close(hessian, expected, 1e-5, role)


def test_activations_come_back_in_their_own_precision(tmp_path):
    values = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float32, torch.bfloat16):
        file = Activations(tmp_path / str(dtype), (5, 3, 4), dtype)
        assert not file.exists
        file.write([values[:2], values[2:]])
        assert torch.equal(file.read(slice(1, 4)), values[1:4].to(dtype).float())
        assert file.path.stat().st_size == values.numel() * dtype.itemsize


def test_sampling_follows_the_probabilities():
    p = torch.tensor([0.0, 1.0, 0.0, 3.0, 6.0, 0.0]).expand(20000, -1)
    drawn = sample(p, torch.Generator().manual_seed(0))
    shares = torch.bincount(drawn, minlength=6) / len(drawn)
    assert (shares - p[0] / 10).abs().max() < 0.015  # four standard deviations
    assert shares[[0, 2, 5]].sum() == 0


# ---------------------------------------------------------------------------- the same bytes


class Scattered:
    """Does items last first, each as another machine would: all that it knows is in the item."""

    in_process = False

    def map(self, work, items):
        for item in reversed([pickle.loads(pickle.dumps(item)) for item in items]):
            with torch.inference_mode(mode=False):
                work(item)
        yield from items


def swept(folder: Path, decoder: Decoder, counted: bool = False, **options) -> dict[str, bytes]:
    """The files of a sweep."""
    folder.mkdir()
    tokens = random_tokens(decoder, train=21, held_out=10)
    if counted:
        tokens = replace(tokens, counted=tokens.all % 3 > 0)
    finish(sweep.guided_hessians(decoder, tokens, folder, 5, output_side=True, **options))
    return files(folder)


@pytest.mark.parametrize("family", ["llama", "lfm2_moe"])
def test_groups_items_and_inputs_made_again_change_no_byte(tmp_path, monkeypatch, family):
    """However little room there is for moments, whoever does the items, and with most hidden states
    made again when they are needed."""
    monkeypatch.setattr(stream, "TOKENS_AT_ONCE", 4 * LENGTH)
    monkeypatch.setattr(stream, "RUNS", 3)  # of two batches, and two held-out ones
    make_model(tmp_path / "model", family, layers=2, tied=False)
    decoder = Decoder(open_checkpoint(str(tmp_path / "model")))
    passes_made: list[tuple] = []
    real = sweep.groups
    monkeypatch.setattr(
        sweep, "groups", lambda *given: passes_made.append(real(*given)) or passes_made[-1]
    )
    whole = swept(tmp_path / "whole", decoder)
    assert [len(groups) for groups in passes_made] == [1, 1]
    assert swept(tmp_path / "little room", decoder, room=1, every=2) == whole
    assert all(len(groups) > 1 for groups in passes_made[2:])
    assert swept(tmp_path / "scattered", decoder, executor=Scattered()) == whole
    both = swept(tmp_path / "both", decoder, executor=Scattered(), room=300_000, every=3)
    assert both == whole
    some = swept(tmp_path / "some", decoder, counted=True)
    assert some != whole
    assert swept(tmp_path / "again", decoder, counted=True, executor=Scattered()) == some


def test_the_number_of_threads_changes_no_byte(tmp_path, decoder):
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(swept(tmp_path / str(threads), decoder))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1] == found[2]


def test_runs_do_not_depend_on_anything_but_the_tokens(monkeypatch):
    monkeypatch.setattr(stream, "TOKENS_AT_ONCE", 10)
    ids = torch.zeros(100, 10)
    tokens = Tokens(ids[:70], ids[70:])
    found = stream.runs(tokens)
    assert [run.held_out for run in found] == [False] * 8 + [True] * 4
    rows = [row for run in found for row in range(100)[run.rows]]
    assert rows == list(range(100))
    batches = [range(100)[run.rows][batch] for run in found for batch in run.batches]
    assert [b[0] for b in batches] == [
        b.rows.start for b in stream.micro_batches(Tokens(ids[:70], ids[70:]))
    ]


def test_a_group_takes_what_fits(monkeypatch):
    sizes = {"a": 5, "b": 3, "c": 9, "d": 4}
    stacks = [(name,) for name in sizes]
    size = lambda stack: sum(sizes[name] for name in stack)  # noqa: E731
    assert groups(stacks, size, None) == [tuple(stacks)]
    for room in (1, 8, 9, 12, 21):
        found = groups(stacks, size, room)
        assert sorted(stack for group in found for stack in group) == stacks
        assert all(sum(map(size, group)) <= room or len(group) == 1 for group in found)
    assert len(groups(stacks, size, 12)) == 2


# ---------------------------------------------------------------------------- resuming


@pytest.mark.slow
def test_a_sweep_stopped_at_any_step_ends_as_if_it_had_not_been(tmp_path, decoder):
    tokens = random_tokens(decoder)
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    whole.mkdir()
    steps = len(list(sweep.guided_hessians(decoder, tokens, whole, seed=2)))
    assert steps >= 2 * decoder.dimensions.num_hidden_layers
    for stop in range(1, steps + 1):
        folder = halved / str(stop)
        folder.mkdir(parents=True)
        run = sweep.guided_hessians(decoder, tokens, folder, seed=2)
        for _ in range(stop):
            next(run)
        run.close()
        finish(sweep.guided_hessians(decoder, tokens, folder, seed=2))
        assert files(folder) == files(whole), f"stopped at step {stop}"


@pytest.mark.slow
def test_a_sweep_killed_between_two_file_operations_ends_the_same(tmp_path, decoder):
    def calibrate(folder: Path) -> None:
        finish(sweep.guided_hessians(decoder, random_tokens(decoder), folder, seed=2))

    whole = tmp_path / "whole"
    whole.mkdir()
    calibrate(whole)
    for operations in range(0, 400, 3):
        folder = tmp_path / str(operations)
        folder.mkdir()
        killed = dies_before(operations, partial(calibrate, folder))
        calibrate(folder)
        assert files(folder) == files(whole), f"killed before file operation {operations}"
        if not killed:
            break
    assert not killed
    assert operations > 10


def test_a_resumed_sweep_does_not_begin_again(tmp_path, decoder):
    """Stopped before the last block, the second run has one step left."""
    tokens = random_tokens(decoder)
    run = sweep.guided_hessians(decoder, tokens, tmp_path, seed=2)
    for step in run:
        if step.label == "back to block 0":
            break
    run.close()
    labels = [step.label for step in sweep.guided_hessians(decoder, tokens, tmp_path, seed=2)]
    assert labels == ["back to block 0"]


# ---------------------------------------------------------------------------- tokens


def read(decoder: Decoder, path: Path, **options) -> Tokens:
    options = {"source": path.name, "sequence_length": 32, "tokens": 320} | options
    path = source_path(options["source"], path.parent)
    return calibration_text.read_tokens(decoder.checkpoint, Calibrate(**options), path)


def positions(rows: Tensor, sequences: Tensor) -> list[int]:
    """Where the rows are among the sequences, in ascending order."""
    return sorted((sequences == row).all(1).nonzero()[0].item() for row in rows)


def write_lines(path: Path, *rows: object) -> Path:
    text = "\n".join(r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in rows)
    path.write_text(text, encoding="utf-8")
    return path


def test_a_long_text_is_sampled_evenly(tmp_path, decoder):
    path = write_lines(tmp_path / "text.txt", *(f"{n} {TEXT[n % 4]}" for n in range(400)))
    found = read(decoder, path, held_out=0.2)
    assert found.train.shape == (10, 32)
    assert found.held_out.shape == (2, 32)
    ids = decoder.checkpoint.tokenizer.encode(path.read_text(), add_special_tokens=False)
    sequences = torch.tensor(ids[: len(ids) // 32 * 32]).view(-1, 32)
    held_out, at = positions(found.held_out, sequences), positions(found.all, sequences)
    assert len({*at}) == len(at)  # no sequence twice, so none both trained on and held out
    assert held_out != at[-2:]  # drawn from everywhere, not cut off at the end
    assert at[0] == 0
    assert at[-1] == len(sequences) - 1
    gaps = torch.tensor(at).diff()
    assert gaps.max() - gaps.min() <= 1
    assert gaps.min() > 1


def test_a_short_text_is_shared_between_training_and_held_out(tmp_path, decoder):
    path = write_lines(tmp_path / "text.txt", *TEXT)
    found = read(decoder, path, tokens=4096, held_out=0.25)
    ids = decoder.checkpoint.tokenizer.encode("\n".join(TEXT), add_special_tokens=False)
    sequences = torch.tensor(ids[: len(ids) // 32 * 32]).view(-1, 32)
    assert positions(found.all, sequences) == list(range(len(sequences)))
    assert 1 <= len(found.held_out) < len(found.train)


def test_too_short_a_text_is_an_error(tmp_path, decoder):
    path = write_lines(tmp_path / "text.txt", "Only a few words.")
    with pytest.raises(CalibrationError, match=r"text\.txt has \d+ tokens, fewer than 64"):
        read(decoder, path)
    with pytest.raises(CalibrationError, match="there is no such file"):
        read(decoder, tmp_path / "absent.txt")
    (tmp_path / "latin.txt").write_bytes("déjà vu".encode("latin-1"))
    with pytest.raises(CalibrationError, match="not UTF-8"):
        read(decoder, tmp_path / "latin.txt")


def test_rows_of_a_jsonl_go_through_the_chat_template(tmp_path, decoder):
    tokenizer = decoder.checkpoint.tokenizer
    messages = [{"role": "user", "content": "Hi\u2028é"}, {"role": "assistant", "content": "Yes"}]
    path = write_lines(
        tmp_path / "chats.jsonl",
        "\ufeff" + json.dumps({"messages": messages}, ensure_ascii=False),
        "",
        {"prompt": "Why?", "response": "Because."},
        {"text": "A document."},
    )
    ids = calibration_text.encode(tokenizer, path)
    assert tokenizer.decode(ids) == (
        "<|im_start|>user\nHi\u2028é<|im_end|>\n<|im_start|>assistant\nYes<|im_end|>\n"
        "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\nBecause.<|im_end|>\n"
        "A document."
    )
    special = tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert (ids == special).sum() == 4  # one token each, not its letters


@pytest.mark.parametrize(
    "row",
    [
        "{not json",
        '{"question": "?"}',
        '{"prompt": "?"}',
        "[1, 2]",
        "17",
        "null",
        '{"messages": 3}',
        '{"messages": []}',
        '{"messages": ["Hi"]}',
        '{"messages": [{"role": "user"}]}',
        '{"messages": [{"role": "tool", "content": "x"}]}',
    ],
)
def test_a_row_that_is_no_chat_is_named_by_its_line(tmp_path, decoder, row, monkeypatch):
    tokenizer = decoder.checkpoint.tokenizer
    strict = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('user first') }}{% endif %}"
    monkeypatch.setattr(tokenizer, "chat_template", strict + CHAT)
    path = write_lines(tmp_path / "chats.jsonl", {"text": "fine"}, "", row)
    with pytest.raises(CalibrationError, match=r"chats\.jsonl line 3 is no chat"):
        calibration_text.encode(tokenizer, path)


def test_without_a_chat_template_messages_are_paragraphs(tmp_path, decoder, monkeypatch):
    tokenizer = decoder.checkpoint.tokenizer
    monkeypatch.setattr(tokenizer, "chat_template", None)
    path = write_lines(tmp_path / "chats.jsonl", {"prompt": "Why?", "response": "Because."})
    assert tokenizer.decode(calibration_text.encode(tokenizer, path)) == "Why?\n\nBecause."


def written(decoder: Decoder, folder: Path, seed: int = 0) -> Tokens:
    folder.mkdir(exist_ok=True)
    options = Calibrate(tokens=320, sequence_length=32, held_out=0.3, seed=seed)
    return finish(calibration_text.write_tokens(decoder, options, folder))


@pytest.mark.slow
@torch.no_grad()
def test_the_model_writes_the_same_text_for_the_same_seed(tmp_path, decoder):
    first = written(decoder, tmp_path / "a")
    assert torch.equal(first.all, written(decoder, tmp_path / "b").all)
    assert torch.equal(first.all, written(decoder, tmp_path / "a").all)  # read back
    assert not torch.equal(first.all, written(decoder, tmp_path / "c", seed=1).all)
    assert first.train.shape == (10, 32)
    assert first.held_out.shape == (3, 32)
    assert first.all.max() < decoder.dimensions.vocab_size
    assert len(torch.unique(first.all, dim=0)) == 13


@pytest.mark.slow
@torch.no_grad()
def test_batches_do_not_change_how_much_is_written(tmp_path, decoder, monkeypatch):
    monkeypatch.setattr(self_text, "_CACHE_BYTES", 5 * 2 * 4 * 3 * 2 * 16 * 32)
    found = written(decoder, tmp_path)
    assert [p.name for p in sorted(tmp_path.glob("*.npy"))] == [
        "tokens-00000.npy",
        "tokens-00005.npy",
        "tokens-00010.npy",
    ]
    assert (found.train.shape, found.held_out.shape) == ((10, 32), (3, 32))
    assert len(torch.unique(found.all, dim=0)) == 13


@torch.no_grad()
def test_texts_are_documents_of_many_kinds_and_chats_with_the_template_s_openings(
    tmp_path, decoder
):
    written(decoder, tmp_path)
    ids = torch.from_numpy(np.load(tmp_path / "tokens-00000.npy"))
    tokenizer = decoder.checkpoint.tokenizer
    question, answer = self_text.chat_script(tokenizer)
    assert tokenizer.decode(question) == "<|im_start|>user\n"
    assert tokenizer.decode(answer) == "<|im_end|>\n<|im_start|>assistant\n"
    kinds = dict.fromkeys(self_text.CYCLE, 0)
    starts = set(self_text._document_starts(tokenizer, decoder.dimensions.vocab_size).tolist())
    for index, row in enumerate(ids):
        kind = self_text.CYCLE[index % len(self_text.CYCLE)]
        begin = openings.texts()[self_text.STRIDE * kinds[kind]]
        begin = tokenizer.encode(begin, add_special_tokens=False)[:32]
        match kind:
            case "chat":
                assert row[: len(question)].tolist() == question
            case "random":
                assert int(row[0]) in starts
            case "opening":
                assert row[: len(begin)].tolist() == begin
        kinds[kind] += 1
    assert not starts & set(tokenizer.all_special_ids)


def test_a_document_that_ends_is_followed_by_one_of_another_kind():
    begin = [[1, 2], [3], [4, 5]]
    second = self_text.CYCLE.index("opening", 1)
    text = self_text._begun(second, self_text.CYCLE, [[8], [9]], begin, seed=1)
    written = []
    for position, proposed in enumerate([9, 9, 7, 0, 9, 9, 0, 6]):
        tokens = self_text._advance(
            [text], torch.tensor([proposed]), torch.tensor([5]), {0}, first=position == 0
        )
        written += tokens.tolist()
    assert written == [3, 9, 7, 0, 4, 5, 0, 1]


def test_documents_of_one_kind_do_not_follow_each_other():
    """A short text has all kinds, whatever the seed."""
    kind_of = {text: kind for kind, texts in openings.KINDS.items() for text in texts}
    kinds = [kind_of[text] for text in openings.texts()]
    assert len(kinds) == len(set(openings.texts()))
    first = len(openings.KINDS)
    assert len(set(kinds[:first])) == first
    assert all(one != other for one, other in pairwise(kinds))


def test_a_chat_goes_on_with_the_answer_and_then_with_the_next_question():
    question, answer, end = [1, 2], [0, 3, 4], 0
    chat = self_text.Sequence([question, answer], turn=0)
    written, proposals = [], iter([9, 9, 9, 7, end, 9, 9, 8, end, 9, 9])
    for position, proposed in enumerate(proposals):
        (token,) = self_text._advance(
            [chat], torch.tensor([proposed]), torch.tensor([5]), {end}, first=position == 0
        ).tolist()
        written.append(token)
    assert written == [1, 2, 9, 7, 0, 3, 4, 8, 0, 1, 2]


def test_a_document_that_ends_is_followed_by_a_chat():
    text = self_text.Sequence([[1, 2], [0, 3]], turn=-1)
    written = []
    for position, proposed in enumerate([9, 6, 0, 9, 9, 7]):
        tokens = self_text._advance(
            [text], torch.tensor([proposed]), torch.tensor([5]), {0}, first=position == 0
        )
        written += tokens.tolist()
    assert written == [5, 6, 0, 1, 2, 7]


def test_products_in_bfloat16_move_the_moments_little(tmp_path, decoder, monkeypatch):
    """Labels are the same here; those that are drawn are others wherever rounding differs."""
    monkeypatch.setattr(passes, "sample", lambda p, _: torch.arange(len(p)) % p.shape[-1])
    tokens, found = random_tokens(decoder), []
    places = [("1", role) for role in decoder.block_names(1) if role in LINEAR_ROLES]
    places += [(HEAD, HEAD), (EMBEDDING, EMBEDDING)]
    for products in (torch.float32, torch.bfloat16):
        folder = tmp_path / str(products)
        folder.mkdir()
        finish(
            sweep.guided_hessians(decoder, tokens, folder, 0, output_side=True, products=products)
        )
        found.append([load_hessian(folder / file, role) for file, role in places])
    for exact, rounded in zip(*found, strict=True):
        for side in ("train", "held_out", "out_train", "out_held_out"):
            H, near = (getattr(one, side) for one in (exact, rounded))
            assert (near - H).norm() < 0.06 * H.norm()
            assert rounded.train.dtype == torch.float32
        assert not torch.equal(exact.train, rounded.train)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_text_does_not_depend_on_the_number_of_cores(tmp_path, decoder, monkeypatch, dtype):
    monkeypatch.setattr(self_text, "_TOGETHER", 4)
    monkeypatch.setattr(calibration_text, "product_type", lambda _: dtype)
    cores, texts = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            texts.append(written(decoder, tmp_path / str(count)).all)
    finally:
        torch.set_num_threads(cores)
    assert torch.equal(texts[0], texts[1])
    assert torch.equal(texts[0], texts[2])


@torch.no_grad()
def test_predictions_are_those_of_the_whole_forward_pass(decoder):
    """Each text passes with its own keys and values, whichever part it is in."""
    ids = torch.randint(0, decoder.dimensions.vocab_size, (5, 12))
    predictions = self_text._Predictions(decoder, 5, 12, torch.float32)
    for tokens in ids.T:
        found = predictions.after(tokens, in_turn)
    expected = decoder.logits(ids)[:, -1].softmax(-1)
    likely = expected >= 0.05 * expected.amax(-1, keepdim=True)
    torch.testing.assert_close(found, expected.where(likely, 0), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@torch.no_grad()
def test_a_model_too_large_for_memory_writes_the_same_text(tmp_path, decoder, monkeypatch):
    kept = written(decoder, tmp_path / "kept")
    monkeypatch.setattr(self_text, "fits_in_memory", lambda _: False)
    assert torch.equal(written(decoder, tmp_path / "streamed").all, kept.all)
