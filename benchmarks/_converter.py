"""llama.cpp's converter and llama.cpp itself on many small models, in a process of their own.

    python -m benchmarks._converter LLAMA_CPP < jobs > results

LLAMA_CPP is the folder vendor/llama.cpp of llama-cpp-python's sdist. Jobs and results are JSON, one
a line; a result is written when its job is done, so that whoever reads knows which one ended the
process. What the converter needs for made-up tokenizers and this transformers is put right here:

- it names a pre-tokenizer by a checksum of known vocabularies: here it is "gpt-2";
- some families' tokenizers must be a tokenizer.model, which is made from tokenizer.json;
- transformers 5 renames the kinds of Granite 4's blocks: they are taken as they stand in the file.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.llama import exact_logits

UNMERGED = -1e6
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6


def main() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    convert = converter(Path(sys.argv[1]))
    for line in sys.stdin:
        job = json.loads(line)
        path, error = Path(job["gguf"]), ""
        try:
            if "folder" in job:
                convert(Path(job["folder"]), path, job["flags"])
            np.save(path.with_suffix(".npy"), exact_logits(path, job["tokens"]))
        except (Exception, SystemExit) as failure:
            traceback.print_exc()
            error = f"{type(failure).__name__}: {failure}".partition("\n")[0]
        print(json.dumps({"key": job["key"], "error": error}), flush=True)


def converter(llama_cpp: Path) -> Callable[[Path, Path, list[str]], None]:
    """The converter as a function of a checkpoint's folder, the file to write, and options."""
    sys.path[:0] = [str(llama_cpp / "gguf-py"), str(llama_cpp)]
    import convert_hf_to_gguf
    from conversion import base

    base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
    read = base.ModelBase.load_hparams

    def load_hparams(folder: Path, is_mistral_format: bool) -> dict[str, Any]:
        found, file = (
            read(folder, is_mistral_format),
            json.loads((folder / "config.json").read_text()),
        )
        if file["model_type"] == "granitemoehybrid":
            found["layer_types"] = file["layer_types"]
        return found

    base.ModelBase.load_hparams = staticmethod(load_hparams)

    def convert(folder: Path, out: Path, flags: list[str]) -> None:
        if json.loads((folder / "tokenizer.json").read_text())["model"].get("byte_fallback"):
            (folder / "tokenizer.model").write_bytes(sentencepiece_model(folder))
        sys.argv = ["convert", str(folder), "--outfile", str(out), "--outtype", "f32", *flags]
        convert_hf_to_gguf.main()

    return convert


def sentencepiece_model(folder: Path) -> bytes:
    """tokenizer.json as sentencepiece stores it: scores are minus the ranks of merges."""
    from sentencepiece import sentencepiece_model_pb2

    backend = json.loads((folder / "tokenizer.json").read_text())
    added = {token["content"] for token in backend["added_tokens"]}
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(backend["model"]["merges"]):
        ranks.setdefault("".join(merge), rank)
    proto = sentencepiece_model_pb2.ModelProto()
    proto.trainer_spec.model_type = proto.trainer_spec.BPE
    proto.trainer_spec.byte_fallback = True
    for piece in sorted(backend["model"]["vocab"], key=backend["model"]["vocab"].__getitem__):
        kind = BYTE if piece.startswith("<0x") else CONTROL if piece in added else NORMAL
        kind = UNKNOWN if piece == "<unk>" else kind
        score = -float(ranks[piece]) if piece in ranks else UNMERGED
        proto.pieces.add(piece=piece, score=score, type=kind)
    return proto.SerializeToString()


if __name__ == "__main__":
    main()
