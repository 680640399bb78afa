"""What files say of the machine that they were made on."""

import gguf
import pytest
import torch
from safetensors.torch import save_file

from edgepack.errors import ExportError
from edgepack.publish.traces import Machine, find, find_in

MACHINE = Machine(("/home/annabel", "/data/cache"), "annabel", ("annabel", "thinkpad-9"))


def certain(folder, name):
    return [trace.certain for trace in find(folder, (name,), MACHINE)]


@pytest.mark.parametrize(
    "text",
    [
        '{"path": "/home/annabel/models"}',
        '{"path": "C:\\\\Users\\\\annabel\\\\models"}',
        "file:///home/annabel",
        "/Users/annabel/m.gguf",
        "see /data/cache/x",
    ],
)
def test_folders_of_this_machine(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    assert certain(tmp_path, "config.json") == [True]
    assert find_in({"README.md": text.encode()}, MACHINE)[0].certain


@pytest.mark.parametrize("text", ["cwd: /home/ubuntu/work", "by annabel", "on thinkpad-9."])
def test_what_people_are_to_look_at(tmp_path, text):
    (tmp_path / "report.md").write_text(text)
    assert certain(tmp_path, "report.md") == [False]


@pytest.mark.parametrize(
    "text", ["/database/cache", "homeland/annabella", "annabella", "x/data/cache"]
)
def test_what_only_looks_alike(tmp_path, text):
    (tmp_path / "report.md").write_text(text)
    assert certain(tmp_path, "report.md") == []


def test_a_vocabulary_has_every_word(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"annabel": 7}')
    assert certain(tmp_path, "tokenizer.json") == []
    (tmp_path / "tokenizer.json").write_text('{"file": "/home/annabel/t"}')
    assert certain(tmp_path, "tokenizer.json") == [True]


def test_metadata_of_files_with_weights(tmp_path):
    path = tmp_path / "model.safetensors"
    for text, wanted in {"pt": [], "/home/annabel/x": [True]}.items():
        save_file({"annabel": torch.zeros(3)}, path, metadata={"format": text})
        assert certain(tmp_path, path.name) == wanted
    for number, (text, wanted) in enumerate({"tiny": [], "of /home/annabel/m": [True]}.items()):
        name = f"{number}.gguf"
        writer = gguf.GGUFWriter(tmp_path / name, "llama")
        writer.add_name(text)
        writer.add_token_list(["/home/annabel"])  # a token may be anything
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        assert certain(tmp_path, name) == wanted


@pytest.mark.parametrize("data", [b"", b"\xff" * 8 + b"{}", (2).to_bytes(8, "little") + b"[]"])
def test_weights_that_are_damaged_are_refused(tmp_path, data):
    (tmp_path / "w.safetensors").write_bytes(data)
    with pytest.raises(ExportError, match="is no safetensors file") as caught:
        find(tmp_path, ("w.safetensors",), MACHINE)
    assert caught.value.hint


def test_a_trace_where_a_long_file_is_cut(tmp_path, monkeypatch):
    monkeypatch.setattr("edgepack.publish.traces.CHUNK", 5000)
    (tmp_path / "graph.onnx").write_bytes(b"\0" * 4995 + b"/home/annabel/x" + b"\0" * 9000)
    assert certain(tmp_path, "graph.onnx") == [True]


def test_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LOGNAME", "Annabel")
    folder = tmp_path / "work/out"
    machine = Machine.here(folder)
    assert {str(tmp_path), str(folder.parent)} <= set(machine.folders)
    assert "Annabel" in machine.names
    assert "Annabel" not in Machine.here(folder, "annabel").names
    monkeypatch.setenv("LOGNAME", "root")
    assert "root" not in Machine.here(folder).names
