"""What was read is what is used: digests, and files that change while a checkpoint is open."""

import hashlib
import json
import os
import shutil
import time

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file

from edgepack.checkpoint import digests, open_checkpoint
from edgepack.core import stage as cache
from edgepack.errors import CheckpointError, EdgepackError
from tests.support.tiny import make_model, write_gguf

UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def store(tmp_path, monkeypatch):
    """An empty cache, files of any size and age being worth remembering."""
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "LARGE", 10)
    monkeypatch.setattr(digests, "SETTLED", 0.0)
    return tmp_path / "cache/digests"


@pytest.fixture
def large(tmp_path):
    path = tmp_path / "large"
    path.write_bytes(b"a" * 100)
    return path


def true_digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def hashed(path, monkeypatch):
    """How many times the file's bytes are hashed for its digest, and the digest."""
    calls = []
    original = hashlib.file_digest

    def counting(file, name):
        calls.append(name)
        return original(file, name)

    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", counting)
        return len(calls), digests.sha256(path), calls


def test_a_large_file_is_hashed_once(store, large, monkeypatch):
    assert digests.sha256(large) == true_digest(large)
    _, again, calls = hashed(large, monkeypatch)
    assert (again, calls) == (true_digest(large), [])
    assert len(list(store.iterdir())) == 1  # and no temporary file


def test_a_change_is_noticed_though_size_and_time_are_put_back(store, large):
    before = large.stat()
    first = digests.sha256(large)
    time.sleep(0.02)  # file systems stamp times in ticks
    large.write_bytes(b"b" * 100)
    os.utime(large, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert digests.sha256(large) == true_digest(large) != first


def test_a_copy_put_in_its_place_is_noticed(store, large, tmp_path):
    before = large.stat()
    digests.sha256(large)
    other = tmp_path / "other"
    other.write_bytes(b"c" * 100)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(large)
    assert digests.sha256(large) == true_digest(large)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"sha256": 3}', "null", "[" * 5000])
def test_damaged_entries_are_hashed_again(store, large, content):
    right = digests.sha256(large)
    (entry,) = store.iterdir()
    entry.write_text(content)
    assert digests.sha256(large) == right


def test_an_entry_with_a_flipped_digit_is_not_believed(store, large):
    right = digests.sha256(large)
    (entry,) = store.iterdir()
    flipped = "0" if right[0] != "0" else "1"
    entry.write_text(entry.read_text().replace(right, flipped + right[1:]))
    assert digests.sha256(large) == right


def test_two_files_do_not_lose_each_other_s_entries(store, tmp_path, monkeypatch):
    paths = [tmp_path / name for name in "xy"]
    for path in paths:
        path.write_bytes(path.name.encode() * 50)
        digests.sha256(path)
    assert [hashed(path, monkeypatch)[2] for path in paths] == [[], []]


def test_a_file_written_just_now_is_not_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "LARGE", 10)
    (tmp_path / "new").write_bytes(b"a" * 100)
    digests.sha256(tmp_path / "new")  # a second write within the tick would look the same
    assert not (cache.root() / "digests").exists()


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path, store, large):
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert digests.sha256(large) == true_digest(large)


def test_identities_name_the_file_that_changed(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("one")
    identity = digests.Identity.from_path(path)
    identity.check(path)
    path.with_name("other").write_text("one")
    path.with_name("other").replace(path)
    with pytest.raises(EdgepackError, match=r"text\.txt: changed while edgepack was reading"):
        identity.check(path, EdgepackError)
    path.unlink()
    with pytest.raises(CheckpointError, match="changed"):
        identity.check(path)


# Checkpoints whose files change


def rewrite(path):
    """Other weights, with the same size and modification time."""
    before = path.stat()
    tensors = load_file(path)
    tensors[UP].mul_(3)
    time.sleep(0.02)
    save_file(tensors, path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def truncate(path):
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1000)


def replace(path):
    other = path.with_name("new")
    shutil.copy(path, other)
    other.replace(path)


@pytest.fixture
def opened(tmp_path):
    make_model(tmp_path / "m")
    return open_checkpoint("m", tmp_path), tmp_path / "m"


@pytest.mark.slow
@pytest.mark.parametrize("change", [rewrite, truncate, replace, os.unlink])
@pytest.mark.parametrize("hashed_before", [True, False])
def test_weights_that_change_are_refused(opened, change, hashed_before):
    checkpoint, folder = opened
    if hashed_before:
        assert checkpoint.key
    assert checkpoint.tensor(UP).any()
    change(folder / "model.safetensors")
    for use in (lambda: checkpoint.tensor(UP), lambda: checkpoint.stored(UP)):
        with pytest.raises(CheckpointError, match=r"model\.safetensors: (changed|cannot)"):
            use()
    if not hashed_before:
        with pytest.raises(CheckpointError, match=r"model\.safetensors: changed"):
            _ = checkpoint.key


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"]
)
def test_other_files_that_change_are_refused(opened, name):
    checkpoint, folder = opened
    time.sleep(0.02)
    (folder / name).write_bytes((folder / name).read_bytes() + b"\n")
    with pytest.raises(CheckpointError, match=f"{name}: changed"):
        _ = checkpoint.tokenizer
    with pytest.raises(CheckpointError, match=f"{name}: changed"):
        _ = checkpoint.key


def test_a_template_that_appears_is_noticed(opened):
    checkpoint, folder = opened
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(CheckpointError, match="changed"):
        _ = checkpoint.tokenizer
    checkpoint = open_checkpoint(str(folder))
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates/tool.jinja").write_text("{{ messages }}")
    with pytest.raises(CheckpointError, match="changed"):
        _ = checkpoint.key


@pytest.mark.slow
@pytest.mark.parametrize("change", [truncate, replace, os.unlink])
def test_a_gguf_that_changes_is_refused(opened, tmp_path, change):
    path = tmp_path / "m.gguf"
    write_gguf(path, opened[0], "Q8_0")
    checkpoint = open_checkpoint(str(path))
    assert checkpoint.tensor(UP).any()
    change(path)
    for use in (checkpoint.tensor, checkpoint.quantized, checkpoint.stored):
        with pytest.raises(CheckpointError, match=r"m\.gguf: (changed|cannot)"):
            use(UP)
    with pytest.raises(CheckpointError, match=r"m\.gguf: changed"):
        _ = checkpoint.key


def test_a_snapshot_of_the_hub_is_followed_through_its_links(tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub/models--someone--tiny"
    snapshot, blobs = repository / "snapshots" / commit, repository / "blobs"
    make_model(snapshot)
    blobs.mkdir()
    for path in list(snapshot.iterdir()):
        path.replace(blobs / path.name)
        path.symlink_to(os.path.relpath(blobs / path.name, snapshot))
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    checkpoint = open_checkpoint("someone/tiny")
    key = checkpoint.key
    rewrite(blobs / "model.safetensors")
    with pytest.raises(CheckpointError, match="changed"):
        checkpoint.tensor(UP)
    assert open_checkpoint("someone/tiny").key != key  # the same commit, damaged


# Which files count


def with_index(folder, names):
    """The weights in shards of other names, and the index that says so."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for number, name in enumerate(names):
        part = {key: tensors[key] for key in sorted(tensors)[number :: len(names)]}
        save_file(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    content = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))


def test_shards_of_any_name_are_part_of_the_key(opened):
    original, folder = opened
    W = original.tensor(UP)
    with_index(folder, ["weights-a.safetensors", "0.safetensors"])
    checkpoint = open_checkpoint(str(folder))
    assert torch.equal(checkpoint.tensor(UP), W)
    assert {"weights-a.safetensors", "0.safetensors"} <= set(checkpoint.source["files"])
    for shard in ("weights-a.safetensors", "0.safetensors"):
        key = open_checkpoint(str(folder)).key
        tensors = load_file(folder / shard)
        next(iter(tensors.values())).add_(1)
        save_file(tensors, folder / shard)
        assert open_checkpoint(str(folder)).key != key


def test_the_whole_model_comes_before_a_stale_index(tmp_path):
    make_model(tmp_path / "m", seed=1, shards=3)
    make_model(tmp_path / "tuned", seed=2)
    (tmp_path / "tuned/model.safetensors").replace(tmp_path / "m/model.safetensors")
    checkpoint = open_checkpoint("m", tmp_path)
    right = load_file(tmp_path / "m/model.safetensors")[UP].float()
    assert torch.equal(checkpoint.tensor(UP), right)
    assert [name for name in checkpoint.source["files"] if name.startswith("model")] == [
        "model.safetensors"
    ]
    (warning,) = checkpoint.warnings()
    assert "model.safetensors.index.json" in warning


def test_a_tensor_in_two_shards_is_refused(opened):
    _, folder = opened
    with_index(folder, ["a.safetensors", "b.safetensors"])
    tensors = load_file(folder / "a.safetensors") | load_file(folder / "b.safetensors")
    save_file(tensors, folder / "a.safetensors")
    with pytest.raises(CheckpointError, match="is there twice"):
        open_checkpoint(str(folder))


@pytest.mark.slow
@pytest.mark.parametrize(
    "content",
    [
        [],
        None,
        {},
        {"weight_map": []},
        {"weight_map": {}},
        {"weight_map": None},
        {"weight_map": {"a": 3}},
        {"weight_map": {"a": None}},
        {"weight_map": {"a": "../x.safetensors"}},
        {"weight_map": {"a": "/x.safetensors"}},
        {"weight_map": {"a": "sub/x.safetensors"}},
        {"weight_map": {"a": "..\\x.safetensors"}},
        {"weight_map": {"a": "C:x.safetensors"}},
        {"weight_map": {"a": "x" * 5000 + ".safetensors"}},
        {"weight_map": {"a": "x\0.safetensors"}},
        {"weight_map": {"a": "x\n.safetensors"}},
        {"weight_map": {"a": ""}},
        {"weight_map": {"a": ".."}},
        {"weight_map": {"a": "config.json"}},
        {"weight_map": {"a": "gone.safetensors"}},
    ],
    ids=lambda content: json.dumps(content)[:50],
)
@pytest.mark.parametrize("whole", [True, False])
def test_indexes_that_name_no_file_of_the_folder(opened, content, whole):
    _, folder = opened
    shutil.copy(folder / "model.safetensors", folder.parent / "x.safetensors")
    if not whole:
        (folder / "model.safetensors").unlink()
    elif "gone" in json.dumps(content):
        pytest.skip("a stale index, whose shards may be gone")
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(str(folder))
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)
    assert caught.value.hint
