"""README.md for a folder that has none: a header as the hub wants it, and the report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgepack.checkpoint.card import with_header
from edgepack.checkpoint.gguf_header import GgufHeader
from edgepack.checkpoint.hub import ID
from edgepack.core.artifact import SOFTWARE

MADE_WITH = f"""## Made with

`{SOFTWARE}` lists the software that took part (CycloneDX 1.6), `manifest.json` what the bytes
depend on. `edgepack verify DIR` checks every file. edgepack sends nothing.
"""
NAME, REPORT = "README.md", "report.md"
LIBRARIES = {"gguf": "gguf", "onnx": "onnx"}
"""Target of a build → what the hub calls the library that runs it."""
LICENCE = "general.license"
ADAPTER_USE = """# {title}

A LoRA adapter for {base}, made with edgepack {version}. llama.cpp takes `--lora adapter.gguf`
beside that model's files, PEFT the folder `peft`.
"""


def make(folder: Path, about: Mapping[str, Any]) -> str:
    """The card of a build or an adapter. `about` is its manifest, or its adapter.json."""
    if "base" in about:
        return _adapter(folder.resolve().name, about)
    target, model = str(about["target"]), about["model"]
    header: dict[str, Any] = {"library_name": LIBRARIES.get(target, "transformers")}
    if sources := _on_hub(model):
        header |= {"base_model": sources, "base_model_relation": "quantized"}
    if licence := _licence(folder, about["files"]):
        header["license"] = licence
    header |= {"pipeline_tag": "text-generation", "tags": ["edgepack", target]}
    report = folder / REPORT
    listed = REPORT in about["files"]
    text = report.read_text("utf-8", "replace") if listed else f"# {folder.resolve().name}\n"
    if SOFTWARE in about["files"]:
        text = f"{text.rstrip()}\n\n{MADE_WITH}"
    return with_header(header, text)


def _adapter(title: str, about: Mapping[str, Any]) -> str:
    base = str(about["base"]["name"])
    header: dict[str, Any] = {"library_name": "peft"}
    if _is_id(base):
        header |= {"base_model": base.partition("@")[0], "base_model_relation": "adapter"}
    header |= {"pipeline_tag": "text-generation", "tags": ["edgepack", "lora"]}
    text = ADAPTER_USE.format(title=title, base=f"`{base}`", version=about["edgepack"])
    return with_header(header, text)


def _on_hub(model: Mapping[str, Any]) -> list[str]:
    """Ids of the models of the hub that it comes from: a merge's inputs, base and adapters."""
    inputs = [*(model.get("sources") or {}).values(), *(model.get("adapters") or ())]
    found = [model, *([model["base"]] if model.get("base") else []), *inputs]
    names = (str(one["model"]).partition("@")[0] for one in found if one.get("kind") == "hub")
    return list(dict.fromkeys(names))


def _is_id(name: str) -> bool:
    """Whether a name can only be a model of the hub: owner/name, and no path or package."""
    return "/" in name and ID.fullmatch(name) is not None


def _licence(folder: Path, files: Mapping[str, Any]) -> str | None:
    """The licence in the header of a GGUF, which is that of the model's own card."""
    for name in sorted(files):
        if name.endswith(".gguf"):
            entry = GgufHeader(folder / name).metadata.get(LICENCE)
            if entry is not None:
                return str(entry[0])
    return None
