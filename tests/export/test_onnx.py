"""ONNX graphs compute what the checkpoint does, in every family and format; the folder is one that
other programs read."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers

import edgepack
from edgepack.checkpoint import open_checkpoint
from edgepack.core import plugins
from edgepack.core.artifact import Artifact
from edgepack.core.weights import WeightFormat
from edgepack.errors import EdgepackError
from edgepack.export import _onnx_graph, _onnx_pack, _onnx_weights, onnx_decoder
from edgepack.export.gguf import write_model
from edgepack.export.profiles import GraphOptions
from edgepack.model.decoder import Decoder
from edgepack.runtimes import onnx_runtime
from edgepack.runtimes.base import Sampling
from edgepack.runtimes.chat import chat
from edgepack.runtimes.forks import Fork
from edgepack.runtimes.onnx_runtime import OnnxRuntime
from tests.support.dying import survives
from tests.support.graphs import DRAWN, FORMATS, IDS, INT8, distance, logits, rounded, write
from tests.support.slices import recipe, says
from tests.support.tiny import LAYER_NORM, LONGROPE, make_model

onnx = pytest.importorskip("edgepack.export.onnx", reason="onnx is not installed")
pytest.importorskip("onnxruntime")


def expected(checkpoint, weights):
    replaced = {name: w.dense for name, w in weights.items()}
    return Decoder(checkpoint, replaced).logits(IDS)[0].numpy()


@pytest.fixture(params=[(f, t) for f in DRAWN for t in (True, False)], ids=str)
def dense(request, tmp_path):
    family, tied = request.param
    if family == "phi" and tied:
        pytest.skip("Phi's head has a bias of its own, and is never tied")
    model = make_model(tmp_path / "model", family, tied=tied, dtype=torch.float16)
    return open_checkpoint(str(tmp_path / "model")), model.float()


@pytest.mark.slow
@torch.no_grad()
def test_a_graph_of_plain_weights_has_transformers_logits(dense, tmp_path):
    checkpoint, model = dense
    path = write(tmp_path / "out", checkpoint, rounded(checkpoint, "f16"))
    wanted = model(IDS).logits[0].numpy()
    assert wanted.std() > 0.5
    assert np.abs(logits(path) - wanted).max() < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("mistral", {"sliding_window": 8}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}),
        ("llama", {"head_dim": 32}),
        ("llama", {"head_dim": 80, "heads": 2, "kv_heads": 1}),
        ("smollm3", {"layers": 4}),
        ("phi3", {"sliding_window": 8}),
        ("phi3", LONGROPE),
    ],
    ids=str,
)
@torch.no_grad()
def test_windows_stretched_rotation_and_wide_heads(family, config, tmp_path):
    model = make_model(tmp_path / "model", family, dtype=torch.float16, **config).float()
    checkpoint = open_checkpoint(str(tmp_path / "model"))
    options = GraphOptions(config.get("original_max_position_embeddings", 128))
    path = write(tmp_path / "out", checkpoint, rounded(checkpoint, "f16"), options)
    assert np.abs(logits(path) - model(IDS).logits[0].numpy()).max() < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen2", "opt", "phi"])
@pytest.mark.parametrize("method", ["global", "per_block"])
def test_a_sliced_model_computes_what_its_checkpoint_does(family, method, tmp_path):
    if method == "global" and family in LAYER_NORM:
        pytest.skip("one rotation is for models with RMSNorm")
    make_model(tmp_path / "model", family, tied=False, dtype=torch.float32)
    path = recipe(tmp_path, 40, method=method)
    sliced = edgepack.build(path, "checkpoint", out=tmp_path / "sliced").folder
    model = transformers.AutoModelForCausalLM.from_pretrained(sliced, trust_remote_code=True)
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim == 2:
                value.copy_(value.half())
        wanted = model(IDS).logits[0].numpy()
    out = edgepack.build(path, "onnx", out=tmp_path / "out").folder
    assert np.abs(logits(onnx_runtime.model_file(out)) - wanted).max() < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("tied", [True, False])
def test_every_format_is_what_it_decodes_to(form, tied, tmp_path, monkeypatch):
    make_model(tmp_path / "model", tied=tied, hidden=128, intermediate=256)
    checkpoint = open_checkpoint(str(tmp_path / "model"))
    weights = rounded(checkpoint, form)
    wanted = expected(checkpoint, weights)
    found = logits(write(tmp_path / "out", checkpoint, weights))
    assert distance(found, wanted) < INT8
    if form == "int8":
        return  # its activations are always rounded
    monkeypatch.setattr(_onnx_weights, "ACCURACY", 0)  # activations stay float32
    exact = logits(write(tmp_path / "exact", checkpoint, weights))
    assert np.abs(exact - wanted).max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("factors", ["f16", "q8_0", "q4_0"])
def test_factors_are_added(factors, tmp_path, monkeypatch):
    monkeypatch.setattr(_onnx_weights, "ACCURACY", 0)
    make_model(tmp_path / "model", "qwen2", hidden=128, intermediate=256)
    checkpoint = open_checkpoint(str(tmp_path / "model"))
    weights = rounded(checkpoint, "int4_g32", rank=32, factors=factors)
    bare = {name: replace(w, L=None, R=None) for name, w in weights.items()}
    found = logits(write(tmp_path / "out", checkpoint, weights))
    assert np.abs(found - expected(checkpoint, weights)).max() < 1e-4
    assert np.abs(found - expected(checkpoint, bare)).max() > 0.01


@pytest.mark.slow
def test_codes_of_stock_types_are_those_of_the_gguf(tmp_path):
    make_model(tmp_path / "model", hidden=128, intermediate=256)
    checkpoint = open_checkpoint(str(tmp_path / "model"))
    for form in ("q4_0", "q8_0"):
        weights = rounded(checkpoint, form)
        formats = dict.fromkeys(weights, form)
        write_model(tmp_path / "base.gguf", checkpoint, formats, lambda n, w=weights: w[n].Q)
        stock = open_checkpoint(str(tmp_path / "base.gguf"))
        name = "model.layers.1.mlp.down_proj.weight"
        how = _onnx_pack.find_layout(plugins.find("formats", form))
        packed = _onnx_pack.codes(weights[name].Q, how)
        codes = packed if how.bits == 8 else np.stack([packed & 15, packed >> 4], -1)
        assert np.array_equal(codes.reshape(128, 256), stock.quantized(name).codes.numpy())


@pytest.mark.slow
@pytest.mark.parametrize("family", DRAWN)
def test_rows_padded_on_the_left_are_as_if_alone(family, tmp_path):
    make_model(tmp_path / "model", family, tied=False, dtype=torch.float16)
    checkpoint = open_checkpoint(str(tmp_path / "model"))
    path = write(tmp_path / "out", checkpoint, rounded(checkpoint, "f16"))
    rows, more = [[5, 6, 7, 8, 9, 10], [11, 12, 13]], [20, 21]
    with OnnxRuntime(path, context=64) as runtime:
        width = max(map(len, rows))
        mask = np.array([[0] * (width - len(r)) + [1] * len(r) for r in rows])
        ids = np.array([[0] * (width - len(r)) + r for r in rows])
        past = [runtime._empty(name, 2).numpy() for name in runtime._past]
        for token in [*more, None]:
            positions = np.maximum(mask.cumsum(1) - 1, 0)[:, -ids.shape[1] :]
            feed = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
            feed = {name: value for name, value in feed.items() if name in runtime._inputs}
            feed |= dict(zip(runtime._past, past, strict=True))
            together, *past = runtime._session.run(["logits", *runtime._present], feed)
            for row, own in zip(together, rows, strict=True):
                assert np.abs(row[-1] - runtime.logits(own)[-1]).max() < 1e-4
                own.append(token)
            ids, mask = np.full((2, 1), token), np.pad(mask, ((0, 0), (0, 1)), constant_values=1)


# ---------------------------------------------------------------------------- the runtime


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A recipe with factors, built and measured."""
    folder = tmp_path_factory.mktemp("onnx")
    make_model(folder / "model", hidden=128, intermediate=256)
    text = folder / "text.txt"
    text.write_text(
        "The quick brown fox jumps over the lazy dog, and then it's time to rest. " * 99
    )
    given = {
        "model": "model",
        "calibrate": {"source": "text.txt", "tokens": 512, "sequence_length": 64},
        "compress": {"format": "int3_g64", "rank": 4, "factors": "f16", "embeddings": "q8_0"},
        "export": {"measure": {"tokens": 256, "context": 64}, "onnx": {"context": 96}},
    }
    (folder / "recipe.yaml").write_text(json.dumps(given))
    return edgepack.build(folder / "recipe.yaml", "onnx", out=folder / "out")


@pytest.fixture(scope="module")
def runtime(built):
    with OnnxRuntime(built.base, context=96, sequences=4) as runtime:
        yield runtime


@pytest.mark.slow
def test_tokens_one_by_one_are_those_of_a_whole_pass(runtime, monkeypatch):
    start = [3, 4, 5, 6]
    said = list(runtime.generate(start, 12))
    assert len(said) == 12
    whole = runtime.logits([*start, *said])
    assert whole[len(start) - 1 : -1].argmax(-1).tolist() == said
    assert list(runtime.generate(start, 12, stop=[said[5]])) == said[: said.index(said[5])]
    monkeypatch.setattr(runtime._tokenizer, "ends", frozenset([said[3]]))
    assert list(runtime.generate(start, 12)) == said[: said.index(said[3])]
    assert list(runtime.generate(start, 12, Sampling(ignore_eos=True))) == said


@pytest.mark.slow
def test_sampling_follows_its_seed_and_a_penalty_changes_it(runtime):
    def said(**how):
        return list(runtime.generate([3, 4, 5], 8, Sampling(**how)))

    assert said(temperature=2.0, seed=1) == said(temperature=2.0, seed=1)
    assert len({tuple(said(temperature=2.0, seed=seed)) for seed in range(4)}) > 1
    assert said(temperature=1e-3) == said()
    penalised = said(repeat_penalty=1e6)
    assert len(set(penalised)) == len(penalised)


@pytest.mark.slow
def test_branches_are_as_if_each_were_alone(runtime):
    forks = [Fork((3, 4, 5), ((6, 7), (8, 9, 10, 11), (12,))), Fork((4,), ((5, 6),))]
    for fork in forks:
        for branch, found in zip(fork.branches, runtime.branches([fork]), strict=True):
            alone = runtime.logits([*fork.stem, *branch[:-1]])[len(fork.stem) - 1 :]
            assert distance(found, alone) < INT8


def test_pieces_are_the_bytes_of_a_text(runtime):
    text = "Größe: 3.14, où 狐 <|im_end|>."
    ids = runtime.tokenize(text)
    assert b"".join(map(runtime.piece, ids)).decode() == text
    special = runtime.tokenize("<|im_end|>", special=True)
    assert [runtime.piece(token) for token in special] == [b""]
    assert "".join(chat(runtime, [{"role": "user", "content": "Hi"}], 4))


def test_the_folder_says_what_every_program_asks(built):
    out = built.folder
    config = json.loads((out / "config.json").read_text())
    assert config["transformers.js_config"] == {
        "dtype": "q4",
        "use_external_data_format": {"model_q4.onnx": 1},
    }
    tokenizer = json.loads((out / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert tokenizer["model_input_names"] == ["input_ids", "attention_mask"]
    assert tokenizer["chat_template"] == (out / "chat_template.jinja").read_text()
    genai = json.loads((out / "genai_config.json").read_text())["model"]
    assert genai["context_length"] == 96
    assert (out / genai["decoder"]["filename"]).is_file()
    assert 'file_name="model_q4.onnx"' in (out / "README.md").read_text()
    report = (out / "report.md").read_text()
    assert "through ONNX Runtime" in report
    assert "plain rounding, same types" in report
    assert transformers.AutoTokenizer.from_pretrained(out).encode("The fox")


def test_it_is_closer_than_plain_rounding_and_smaller_than_said(built):
    results = built.manifest["measured"]["results"]
    assert results["edgepack"]["kl_mean"] < 0.7 * results["plain rounding, same types"]["kl_mean"]
    files = sum(f["bytes"] for n, f in built.manifest["files"].items() if n.startswith("onnx/"))
    assert results["edgepack"]["bytes"] == files


@pytest.mark.slow
def test_evaluate_and_chat_take_the_folder(built):
    found = edgepack.evaluate(built.folder, tokens=256, context=64).as_dict()
    ours = found["models"][str(built.folder)]["text"]
    assert ours["kl_mean"] == pytest.approx(
        built.manifest["measured"]["results"]["edgepack"]["kl_mean"], rel=0.01
    )
    assert "no-factors" in says("chat", built.folder, "--prompt", "Hi", "--no-factors")


def test_a_context_longer_than_the_graph_is_cut(built):
    with OnnxRuntime(built.base, context=500) as runtime:
        assert runtime.context == 96
        assert len(list(runtime.generate([3] * 90, 50))) <= 6
        with pytest.raises(EdgepackError, match="do not fit into the context of 96"):
            runtime.logits([3] * 97)


def test_a_graph_that_knows_fewer_positions_than_its_model_says_so(tmp_path):
    make_model(tmp_path / "model", max_position_embeddings=16384)
    given = {"model": "model"}
    (tmp_path / "recipe.yaml").write_text(json.dumps(given))
    (warning,) = edgepack.plan(tmp_path / "recipe.yaml", "onnx").warnings
    assert "8192 of the model's 16384 positions" in warning
    given["export"] = {"onnx": {"context": 4096}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(given))
    assert not edgepack.plan(tmp_path / "recipe.yaml", "onnx").warnings


@pytest.mark.slow
def test_a_size_is_kept(tmp_path):
    make_model(tmp_path / "model", hidden=256, intermediate=512)
    rows = torch.randint(0, 26, (400, 12), generator=torch.Generator().manual_seed(0)) + 97
    (tmp_path / "text.txt").write_text("\n".join(bytes(r.tolist()).decode() for r in rows))
    given = {
        "model": "model",
        "calibrate": {"source": "text.txt", "tokens": 1024, "sequence_length": 64},
        "compress": {"target_size": 900_000, "damping": [0.1]},
        "export": {"measure": {"tokens": 0}},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(given))
    made = edgepack.build(tmp_path / "recipe.yaml", "onnx", out=tmp_path / "out")
    size = sum(f["bytes"] for n, f in made.manifest["files"].items() if n.startswith("onnx/"))
    assert 0.97 * 900_000 < size <= 900_000
    assert made.manifest["allocation"]["size"] == size


# ---------------------------------------------------------------------------- files and errors


def test_data_goes_to_files_of_the_size_asked_for(tmp_path):
    make_model(tmp_path / "model", dtype=torch.float16)
    checkpoint = open_checkpoint(str(tmp_path / "model"))
    weights = rounded(checkpoint, "f16")
    parts = {name: WeightFormat("f16") for name in weights}
    graph = onnx_decoder.decoder_graph(checkpoint, parts, weights.__getitem__, GraphOptions(64))
    path = tmp_path / "m.onnx"
    assert list(_onnx_graph.write(graph, path, 50_000)) == list(graph.stored)
    files = sorted(tmp_path.glob("m.onnx_data*"))
    assert [f.name for f in files[:2]] == ["m.onnx_data", "m.onnx_data_1"]
    assert sum(f.stat().st_size > 50_000 for f in files) <= 1  # the embeddings alone are more
    sizes = sum(f.stat().st_size for f in [path, *files])
    assert _onnx_graph.size_of(graph, path.name, 50_000) == sizes
    assert set(onnx_runtime.data_files(path)) == set(files)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["graph", "data", "gone", "tokenizer"])
def test_damaged_files_are_named_in_one_line(built, damage, tmp_path):
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(built.folder, folder)
    graph = Artifact.open(folder).base
    data = graph.with_name(f"{graph.name}_data")
    if damage == "graph":
        graph.write_bytes(graph.read_bytes()[:-100])
    elif damage == "data":
        data.write_bytes(data.read_bytes()[:-100])
    elif damage == "gone":
        data.unlink()
    else:
        (folder / "tokenizer.json").unlink()
    said = says("chat", folder, "--prompt", "Hi")
    assert ("tokenizer.json" if damage == "tokenizer" else "model_q4.onnx") in said
    assert len(said.splitlines()) <= 2


@pytest.mark.slow
def test_formats_of_the_other_target_are_refused_by_name(tmp_path):
    make_model(tmp_path / "model")
    given = {"model": "model", "compress": {"format": "int4_g32"}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(given))
    assert "int4_g32 is no format of --target gguf" in says("plan", tmp_path / "recipe.yaml")
    given["compress"] = {"format": "q5_1"}
    (tmp_path / "recipe.yaml").write_text(json.dumps(given))
    assert "q5_1 is no format of --target onnx" in says(
        "plan", tmp_path / "recipe.yaml", "--target", "onnx"
    )


# ---------------------------------------------------------------------------- factors


@pytest.mark.slow
def test_an_adapter_takes_the_place_of_the_factors(built, tmp_path):
    import onnxruntime as ort

    file = built.folder / "factors.onnx_adapter"
    stored = ort.AdapterFormat.read_adapter(str(file))
    values = {name: value.numpy() for name, value in stored.get_parameters().items()}
    assert len(values) == 2 * 7 * 2
    module = "model.layers.0.mlp.down_proj"
    assert values[f"{module}.lora_A"].shape == (256, 4)
    assert values[f"{module}.lora_B"].shape == (4, 128)

    def write_adapter(name, change):
        adapter = ort.AdapterFormat()
        adapter.set_adapter_version(1)
        adapter.set_model_version(1)
        new = {key: np.ascontiguousarray(change(key, value)) for key, value in values.items()}
        made = {key: ort.OrtValue.ortvalue_from_numpy(value) for key, value in new.items()}
        adapter.set_parameters(made)
        adapter.export_adapter(str(tmp_path / name))
        return tmp_path / name

    def wider(key, value):  # rank 6, the new columns of lora_A meeting zeros
        padding = ((0, 0), (0, 2)) if key.endswith("lora_A") else ((0, 2), (0, 0))
        return np.pad(value, padding, constant_values=1 if key.endswith("lora_A") else 0)

    ids = IDS[0, :20].tolist()

    def found(adapter=None):
        with OnnxRuntime(built.base, adapter) as runtime:
            return runtime.logits(ids)

    own = found()
    assert np.array_equal(found(file), own)
    assert np.abs(found(write_adapter("wide", wider)) - own).max() < 1e-4
    assert np.abs(found(write_adapter("none", lambda _, v: 0 * v)) - own).max() > 1e-3
    broken = tmp_path / "broken"
    broken.write_bytes(b"not an adapter")
    with pytest.raises(EdgepackError, match="cannot use the adapter"):
        found(broken)
    other = write_adapter("other", lambda _, v: v[1:])
    with pytest.raises(EdgepackError, match="does not fit the graph"):
        found(other)


@pytest.mark.slow
def test_a_killed_build_goes_on(tmp_path, monkeypatch):
    make_model(tmp_path / "model", layers=1)
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 99)
    given = {
        "model": "model",
        "calibrate": {"source": "text.txt", "tokens": 512, "sequence_length": 64},
        "compress": {"format": "int4_g32", "rank": 4, "factors": "f16", "damping": [0.1]},
        "export": {"measure": {"tokens": 128, "context": 64}},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(given))

    def work(cache: str) -> None:
        monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / cache))
        edgepack.build(tmp_path / "recipe.yaml", "onnx", out=tmp_path / "out", force=True)

    survives(work, tmp_path / "out", first=5, step=12)
