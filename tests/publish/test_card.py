"""Cards of folders that have none."""

import gguf
import yaml

from edgepack.core.adapters import write_about
from edgepack.publish.card import make
from edgepack.publish.folder import gather


def parts(card):
    _, header, text = card.split("---\n", 2)
    return yaml.safe_load(header), text


def manifest(model, *files, target="gguf"):
    return {"target": target, "model": model, "files": {name: {} for name in files}}


def test_a_build_has_its_models_licence_and_report(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "base.gguf", "llama")
    writer.add_license("apache-2.0")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (tmp_path / "report.md").write_text("# tiny for gguf\n")
    model = {"model": "ann/tiny@main", "kind": "hub", "revision": "0" * 40}
    header, text = parts(make(tmp_path, manifest(model, "base.gguf", "report.md")))
    assert header == {
        "library_name": "gguf",
        "base_model": ["ann/tiny"],
        "base_model_relation": "quantized",
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["edgepack", "gguf"],
    }
    assert text == "\n# tiny for gguf\n"


def test_a_merge_comes_from_those_of_its_models_that_are_on_the_hub(tmp_path):
    hub = {"model": "ann/one", "kind": "hub", "revision": "0" * 40}
    local = {"model": "two", "kind": "folder"}
    model = {"model": "merge", "kind": "merge", "sources": {"one": hub, "two": local}}
    header, text = parts(make(tmp_path, manifest(model, target="onnx")))
    assert header["base_model"] == ["ann/one"]
    assert header["library_name"] == "onnx"
    assert text == f"\n# {tmp_path.name}\n"


def test_a_fine_tune_comes_from_its_base_and_its_adapters(tmp_path):
    base = {"model": "ann/tiny@main", "kind": "hub", "revision": "0" * 40}
    lora = {"model": "bob/lora", "kind": "hub", "revision": "1" * 40}
    local = {"model": "notes", "kind": "folder", "files": {}}
    about = {"model": "x", "kind": "adapted", "base": base, "adapters": [lora, local]}
    header, _ = parts(make(tmp_path, manifest(about)))
    assert header["base_model"] == ["ann/tiny", "bob/lora"]


def test_an_adapter_of_finetune(tmp_path):
    (tmp_path / "adapter.gguf").write_bytes(b"GGUF")
    (tmp_path / "report.md").write_text("lines of the training data")
    about = {"mode": "stack", "ranks": {}, "base": {"name": "ann/tiny", "digest": "0" * 64}}
    write_about(tmp_path, about, {"adapter.gguf": tmp_path / "adapter.gguf"})
    upload = gather(tmp_path)
    assert list(upload.sizes()) == ["README.md", "adapter.gguf", "adapter.json"]
    assert upload.left == ("report.md",)
    header, text = parts(upload.made["README.md"].decode())
    assert header["base_model"] == "ann/tiny"
    assert header["base_model_relation"] == "adapter"
    about["base"]["name"] = "package:tiny/tiny.gguf"
    write_about(tmp_path, about, {"adapter.gguf": tmp_path / "adapter.gguf"})
    header, text = parts(gather(tmp_path).made["README.md"].decode())
    assert "base_model" not in header
    assert "for `package:tiny/tiny.gguf`" in text
