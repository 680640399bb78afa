"""`edgepack verify` on whole folders of every kind, and on damaged ones."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import gguf
import onnx
import pytest

from edgepack.adapters import files
from edgepack.adapters.base import PackedBase
from edgepack.core.artifact import digest
from tests.support.adapters import random_adapter
from tests.support.commands import fails, run

pytestmark = pytest.mark.slow
KINDS = ("gguf", "onnx", "checkpoint", "merged", "sized", "with-notes", "lora")


@pytest.fixture
def copy(built, tmp_path, monkeypatch):
    """A folder of the first machine, copied to where nothing is known of it."""
    monkeypatch.chdir(tmp_path)

    def make(kind, name="out"):
        shutil.copytree(built.first / "out" / kind, tmp_path / name)
        return tmp_path / name

    return make


def problems(*arguments):
    """What is wrong, as (check, what was found)."""
    result = run("verify", *arguments, "--json")
    found = json.loads(result.stdout)
    failed = [(c["check"], c["detail"]) for c in renamed(found) if c["status"] == "failed"]
    assert result.exit_code == (1 if failed else 0)
    assert found["ok"] == (not failed)
    return failed


def renamed(found):
    return [{**check, "check": check["name"]} for check in found["checks"]]


def described(folder, name):
    """Write a file's entry in the manifest anew, as somebody would who hides a change."""
    edit(folder, lambda manifest: manifest["files"].update({name: digest(folder / name)}))


def edit(folder, change):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def flip(path, at=None):
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if at is None else at] ^= 0x10
    path.write_bytes(data)


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_folder_has_nothing_wrong(copy, kind):
    folder = copy(kind)
    result = run("verify", folder)
    assert result.exit_code == 0, result.output
    assert "✗" not in result.stdout
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["✓", "files", "sha256"] in [words[:3] for words in lines]
    assert result.stdout.splitlines()[-1] == f"{folder}: it is what its manifest says"


def test_a_gguf_needs_no_extra(copy):
    """Who installed edgepack alone can check what others built with it."""
    folder = copy("gguf")
    program = (
        "import sys; sys.modules.update(dict.fromkeys("
        "('onnx', 'onnxruntime', 'llama_cpp', 'ray', 'peft', 'matplotlib')))\n"
        "from edgepack.cli import main; sys.argv = ['edgepack', 'verify', sys.argv[1]]; main()"
    )
    command = [sys.executable, "-c", program, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_folder_from_the_hub(copy):
    folder = copy("gguf")
    for name in ("README.md", ".gitattributes", ".cache/huggingface/download/x.metadata"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("of the hub")
    assert problems(folder) == []


@pytest.mark.parametrize("kind", KINDS)
def test_one_bit_of_any_file(copy, kind):
    folder = copy(kind)
    own = "extract.json" if kind == "lora" else "manifest.json"
    listed = json.loads((folder / own).read_text())["files"]
    for name in listed:
        flip(folder / name)
    found = [detail for check, detail in problems(folder) if check == "files"]
    assert found == [f"{name} is not the file that {own} describes" for name in listed]


def test_one_bit_of_an_adapter(copy):
    folder = copy("gguf")
    flip(folder / "adapters/notes/adapter.gguf")
    name = "adapters/notes/adapter.gguf"
    assert ("files", f"{name} is not the file that adapter.json describes") in problems(folder)
    wrong = problems(folder / "adapters/notes")
    assert ("files", "adapter.gguf is not the file that adapter.json describes") in wrong


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("gguf", "base.gguf"),
        ("gguf", "factors.gguf"),
        ("onnx", "onnx/model_q4.onnx"),
        ("onnx", "onnx/model_q4.onnx_data"),
        ("onnx", "factors.onnx_adapter"),
        ("checkpoint", "model-00001-of-00001.safetensors"),
        ("merged", "model.safetensors"),
        ("lora", "adapter.gguf"),
    ],
)
def test_a_file_that_is_cut_off(copy, kind, name):
    """Its digest is wrong, and where that was hidden its structure is."""
    folder = copy(kind)
    path = folder / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    assert "files" in dict(problems(folder))
    if kind != "lora":
        described(folder, name)
        assert {"structure", "weights"} & set(dict(problems(folder)))


def test_files_that_are_missing_or_of_others(copy):
    folder = copy("onnx")
    (folder / "onnx/model_q4.onnx_data").unlink()
    (folder / "onnx/notes.txt").write_text("mine")
    (folder / "link").symlink_to("/nowhere")
    found = problems(folder)
    assert ("files", "onnx/model_q4.onnx_data is missing") in found
    others = [detail for check, detail in found if check == "other files"]
    assert others == [
        f"{name} is no file that edgepack wrote" for name in ("link", "onnx/notes.txt")
    ]
    (structure,) = [detail for check, detail in found if check == "structure"]
    assert "'model_q4.onnx_data' is not there" in structure


def test_a_manifest_with_other_formats_sizes_and_results(copy):
    folder = copy("gguf")
    name = "model.layers.0.mlp.down_proj.weight"

    def change(manifest):
        manifest["weights"][name]["formats"]["Q"] = "q8_0"
        manifest["bytes"]["blocks"] += 32
        manifest["bits_per_weight"]["all"] = 4.0
        manifest["tokenizer"]["tokens"] = 7
        manifest["requires"] = "llama.cpp b1 or later"
        manifest["measured"]["results"]["edgepack"]["kl_mean"] = 0.0001

    edit(folder, change)
    found = problems(folder)
    rank = "rank 4 in f16 and f16"
    assert ("formats", f"{name} is q4_0 + {rank}, the manifest says q8_0 + {rank}") in found
    sizes = [detail for check, detail in found if check == "sizes"]
    assert sizes == ["blocks: the files have 41472 bytes, the manifest says 41504"]
    assert ("tokenizer", "the number of tokens is not what the manifest says") in found
    assert ("runtime", "the types need None, the manifest says llama.cpp b1 or later") in found
    assert ("pages", "report.md says something else than manifest.json") in found
    edit(folder, lambda manifest: manifest["bytes"].update(blocks=41472))
    assert ("sizes", "6.9588 bits per weight (all), the manifest says 4.0000") in problems(folder)


@pytest.mark.parametrize("kind", ["onnx", "checkpoint", "merged"])
def test_a_manifest_with_another_size(copy, kind):
    folder = copy(kind)
    edit(folder, lambda manifest: manifest["bytes"].update({min(manifest["bytes"]): 1}))
    assert "sizes" in dict(problems(folder))


def test_a_gguf_whose_tensor_has_another_type(copy):
    """q8_0 takes 34 bytes for 32 numbers and q5_1 24: it still lies in its file."""
    folder = copy("gguf")
    path = folder / "base.gguf"
    reader = gguf.GGUFReader(path, "r+")
    tensor = next(t for t in reader.tensors if t.name == "token_embd.weight")
    tensor.field.parts[4][0] = gguf.GGMLQuantizationType.Q5_1
    reader.data.flush()
    described(folder, "base.gguf")
    found = problems(folder)
    assert ("formats", "model.embed_tokens.weight is q5_1, the manifest says q8_0") in found


def test_a_gguf_with_something_behind_it_and_other_metadata(copy):
    folder = copy("sized")
    path = folder / "base.gguf"
    with path.open("ab") as file:
        file.write(b"more")
    described(folder, "base.gguf")
    assert problems(folder) == [("structure", "base.gguf has 4 bytes behind its last tensor")]
    path.write_bytes(path.read_bytes()[:-4])
    for key, said in (
        ("llama.block_count", "base.gguf has 2 blocks, its metadata say 3"),
        ("general.file_type", "general.file_type is 3, most matrices are q4_0"),
    ):
        reader = gguf.GGUFReader(path, "r+")
        value = reader.fields[key].parts[-1]
        before = int(value[0])
        value[0] = 3
        reader.data.flush()
        described(folder, "base.gguf")
        structure = [detail for check, detail in problems(folder) if check == "structure"]
        assert any(said in detail for detail in structure), structure
        value[0] = before
        reader.data.flush()
        del reader, value


def test_a_graph_with_another_operator_and_other_external_data(copy):
    folder = copy("onnx")
    path = folder / "onnx/model_q4.onnx"
    whole = path.read_bytes()

    def changed(change):
        model = onnx.load_from_string(whole)
        change(model)
        path.write_bytes(model.SerializeToString())
        described(folder, "onnx/model_q4.onnx")
        return problems(folder)

    def misspell(model):
        model.graph.node[0].op_type = "Gathre"

    def overlap(model):
        first, second = [t for t in model.graph.initializer if t.external_data][:2]
        where = {entry.key: entry for entry in second.external_data}
        where["offset"].value = {e.key: e.value for e in first.external_data}["offset"]

    def shape(model):
        tensor = next(t for t in model.graph.initializer if t.name.endswith("Q.codes"))
        tensor.dims[0] //= 2

    def bits(model):
        for node in model.graph.node:
            for attribute in node.attribute:
                if node.op_type == "MatMulNBits" and attribute.name == "bits":
                    attribute.i = 2

    assert changed(lambda model: None) == []
    assert "structure" in dict(changed(misspell))
    assert "overlaps the tensor before it" in dict(changed(overlap))["structure"]
    assert "its shape" in dict(changed(shape))["structure"]
    assert "ONNX Runtime 1.24" in dict(changed(bits))["runtime"]


def test_an_adapter_of_another_base(copy):
    ours, other = copy("gguf"), copy("sized", "other")
    shutil.copytree(ours / "adapters/notes", other / "adapters/notes")
    assert problems(other) == [("adapter notes", "belongs to another base, llama")]
    shutil.rmtree(other / "adapters")
    (found,) = problems(other, "--adapter", ours / "adapters/notes")
    assert found[0] == "adapter notes"
    assert "was made for llama" in found[1]
    assert problems(ours, "--adapter", "notes") == []
    (found,) = problems(ours, "--adapter", "nobody")
    assert "has no adapter 'nobody'" in found[1]


def test_an_adapter_that_hides_its_base(copy):
    """adapter.json names this base, the files' own metadata another."""
    ours, other = copy("gguf"), copy("sized", "other")
    place = other / "adapters/notes"
    shutil.copytree(ours / "adapters/notes", place)
    about = json.loads((place / "adapter.json").read_text())
    about["base"]["digest"] = PackedBase.open(other).identity.digest
    (place / "adapter.json").write_text(json.dumps(about))
    assert "was made for llama" in dict(problems(other))["adapter notes"]


def test_adapters_of_a_graph(copy):
    folder = copy("onnx")
    base = PackedBase.open(folder)
    files.write(files.place(folder, "mine"), random_adapter(base), base)
    assert problems(folder) == []
    flip(folder / "adapters/mine/adapter.onnx_adapter")
    assert "adapter mine" in dict(problems(folder))


def test_measured_again(built, copy, monkeypatch):
    """With the original named, and with what the cache of the builder knows."""
    folder, model = copy("gguf"), built.first / "in/llama"
    asked = (folder, "--measure", "--model", model, "--text", built.first / "in/text.txt")
    assert problems(*asked) == []
    (nothing,) = problems(folder, "--measure")
    assert nothing[0] == "measured"
    monkeypatch.setenv("EDGEPACK_CACHE", str(built.first / "cache"))
    assert problems(folder, "--measure") == []
    edit(folder, lambda m: m["measured"]["results"]["edgepack"].update(kl_mean=0.5, perplexity=9.0))
    found = [detail for check, detail in problems(folder, "--measure") if check == "measured"]
    assert "the manifest says 0.5000" in found[0]
    assert "perplexity is" in found[1]
    (wrong,) = problems(copy("gguf", "again"), "--model", built.first / "in/other")
    assert "is not what" in wrong[1]


def test_a_checkpoint_measured_again(built, copy):
    known = ("--model", built.first / "in/llama", "--text", built.first / "in/text.txt")
    assert problems(copy("checkpoint"), *known) == []


def test_what_is_no_folder_of_edgepack(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    assert "no manifest.json" in fails("verify", "empty")[0]
    for name in ("nothing", "file"):
        assert fails("verify", name)[0] == f"error: {name}: there is no such folder"


def test_push_sends_nothing_that_is_not_what_it_says(copy):
    folder = copy("gguf")
    edit(folder, lambda manifest: manifest["bytes"].update(blocks=1))
    result = run("push", folder, "ann/tiny", "--dry-run")
    assert result.exit_code == 1
    assert "sizes: blocks: the files have 41472 bytes" in result.stderr
