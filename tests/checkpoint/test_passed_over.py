"""Tensors that are extra, missing or stored twice: read as transformers reads them."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from edgepack.checkpoint import open_checkpoint
from edgepack.errors import CheckpointError
from edgepack.model.decoder import Decoder
from tests.support.tiny import make_model

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
SOME = torch.randn(512, 64, generator=torch.Generator().manual_seed(5))


def extra(*names):
    return lambda tensors: tensors.update({name: torch.ones(8) for name in names})


def copy_of_the_embedding(tensors):
    tensors[HEAD] = tensors[EMBEDDING] + 0


def another_head(tensors):
    tensors[HEAD] = SOME[: len(tensors[EMBEDDING])].to(tensors[EMBEDDING])


def head_alone(tensors):
    tensors[HEAD] = tensors.pop(EMBEDDING)


def nothing(tensors):
    pass


CASES = {
    "rotary buffers": (extra("model.layers.0.self_attn.rotary_emb.inv_freq"), {}, None),
    "positions": (
        lambda tensors: tensors.update({"model.position_ids": torch.arange(8)}),
        {},
        None,
    ),
    "several tokens ahead": (extra("mtp.fc.weight", "mtp.norm.weight"), {}, "2 tensors"),
    "vision": (extra("visual.patch.weight", "model.vision_tower.x.weight"), {}, "vision or audio"),
    "more blocks": (nothing, {"num_hidden_layers": 1}, "beyond num_hidden_layers"),
    "copy of the embedding": (copy_of_the_embedding, {}, None),
    "another head": (another_head, {}, "a matrix of its own"),
    "head alone": (head_alone, {}, None),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_it_is_read_as_transformers_reads_it(tmp_path, case):
    change, config, said = CASES[case]
    make_model(tmp_path / "m", tied=True, dtype=torch.float32)
    edit(tmp_path / "m", change, **config)
    checkpoint = open_checkpoint("m", tmp_path)
    assert [said in line for line in checkpoint.warnings()] == ([True] if said else [])
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32)
    ids = torch.randint(0, 500, (1, 40), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        wanted = model.eval()(ids).logits[0]
    assert (Decoder(checkpoint).logits(ids)[0] - wanted).abs().max() < 1e-3


def edit(folder, change, **config):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    content = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(content))


def test_what_belongs_to_nothing_known_is_refused(tmp_path):
    make_model(tmp_path / "m")
    edit(tmp_path / "m", extra("model.layers.0.self_attn.sinks"))
    with pytest.raises(CheckpointError, match="no part of a llama model"):
        open_checkpoint("m", tmp_path)


def test_an_adapter_beside_the_weights_is_told(tmp_path):
    make_model(tmp_path / "m")
    (tmp_path / "m/adapter_config.json").write_text("{}")
    (warning,) = open_checkpoint("m", tmp_path).warnings()
    assert "adapter_config.json is not read" in warning
