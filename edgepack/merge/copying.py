"""The tokenizer's files of a model, without what old versions of transformers noted in them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from edgepack.checkpoint.folder import TOKENIZER
from edgepack.core.disk import atomic

CONFIG = "tokenizer_config.json"
NOTED = ("name_or_path", "special_tokens_map_file", "tokenizer_file", "vocab_file", "merges_file")
"""Keys of tokenizer_config.json that say where its author's machine had the files; transformers
finds them without these."""


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy the files of the tokenizer in `source`, byte for byte but for keys in `NOTED`."""
    for path in sorted({path for pattern in TOKENIZER for path in source.glob(pattern)}):
        if path.is_file() and not path.name.endswith(".safetensors"):
            target = folder / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomic(target) as temporary:
                shutil.copyfile(path, temporary)
    _forget_places(folder / CONFIG)


def _forget_places(path: Path) -> None:
    if not path.is_file():
        return
    content = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(content, dict) and any(key in content for key in NOTED):
        kept = {key: value for key, value in content.items() if key not in NOTED}
        with atomic(path) as temporary:
            text = json.dumps(kept, indent=2, ensure_ascii=False)
            temporary.write_text(text + "\n", encoding="utf-8")
