"""A Hugging Face folder (safetensors, config.json, tokenizer) as a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from edgepack import plugins
from edgepack.architectures._base import NORMED_WRITERS, Architecture
from edgepack.checkpoint import _layout, digests, rope, special, tokenizer, vocabulary
from edgepack.checkpoint._base import Checkpoint, Dimensions
from edgepack.errors import CheckpointError
from edgepack.weights import QuantizedTensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FILES = (
    "config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template*",
    "generation_config.json",
    "README.md",
)
"""What of a repository is downloaded; without ``consolidated.safetensors``, the same weights."""

READABLE = ("BF16", "F16", "F32")
IGNORED = ".rotary_emb.inv_freq"
"""Buffers that old transformers saved and that follow from the configuration."""

REQUIRED = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "vocab_size",
    "max_position_embeddings",
)


class FolderCheckpoint(Checkpoint):
    """A folder as ``save_pretrained`` writes it; `revision` is the commit of a Hub snapshot."""

    def __init__(self, folder: Path, model: str, revision: str | None = None) -> None:
        self.folder, self.model, self.revision = folder, model, revision
        self.place = model if revision else folder.resolve().name
        self._config = self._read_json("config.json")
        self.architecture = self._architecture()
        self.dimensions = self._dimensions()
        self._files = self._headers()
        self._drop_tied_copy()
        found = {name: entry for name, (_, entry) in self._files.items()}
        self.specs, _ = _layout.match(
            self.place, self.architecture, self.dimensions, found, self.architecture.hf_name
        )

    @cached_property
    def _digests(self) -> dict[str, str]:
        paths = {path for pattern in FILES for path in self.folder.glob(pattern)}
        names = sorted(path.name for path in paths if path.name != "README.md")
        return {name: digests.sha256(self.folder / name) for name in names}

    @property
    def key(self) -> str:  # noqa: D102
        if self.revision:
            return digests.combine({"hub": self.model.partition("@")[0], "rev": self.revision})
        return digests.combine(self._digests)

    @property
    def source(self) -> Mapping[str, Any]:  # noqa: D102
        if self.revision:
            return {"model": self.model, "kind": "hub", "revision": self.revision}
        return {"model": self.model, "kind": "folder", "files": self._digests}

    def tensor(self, name: str) -> Tensor:  # noqa: D102
        return self._read(name).to(torch.float32, copy=True)

    def quantized(self, name: str) -> QuantizedTensor | None:  # noqa: D102
        return None

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:  # noqa: D102
        return tokenizer.from_folder(self.folder)

    def generation_config(self) -> Mapping[str, Any]:  # noqa: D102
        name = "generation_config.json"
        found = self._read_json(name) if (self.folder / name).is_file() else {}
        return special.with_ends(found, self._config)

    def extra_tensors(self) -> Mapping[str, Tensor]:  # noqa: D102
        scaling, dims = self.dimensions.rope_scaling, self.dimensions
        if scaling is None or scaling["rope_type"] != "llama3":
            return {}
        return {rope.TENSOR: rope.llama3_divisors(dims.rope_theta, dims.head_dim, scaling)}

    def gguf_metadata(self) -> Mapping[str, tuple[Any, Any, Any]]:  # noqa: D102
        writer = gguf.GGUFWriter(None, self.architecture.gguf)
        writer.add_type("model")
        self._describe().set_gguf_meta_model(writer)
        self._write_dimensions(writer)
        vocabulary.write(
            writer,
            self.tokenizer,
            self.dimensions.vocab_size,
            self._config,
            self.generation_config(),
        )
        entries = writer.kv_data[0].items()
        return {key: (entry.value, entry.type, entry.sub_type) for key, entry in entries}

    def _describe(self) -> gguf.Metadata:
        """Name, licence, size …: from the model card, else from the model's name."""
        name = Path(self.model.partition("@")[0] if self.revision else self.folder.resolve())
        total = sum(spec.numel for spec in self.specs.values())
        described = gguf.Metadata.apply_metadata_heuristic(
            gguf.Metadata(),
            gguf.Metadata.load_model_card(self.folder),
            None,
            name,
            total,
        )
        described.name = described.name or name.name
        described.size_label = described.size_label or gguf.size_label(total, total, 0, 0)
        return described

    def _write_dimensions(self, writer: gguf.GGUFWriter) -> None:
        dims = self.dimensions
        writer.add_block_count(dims.num_hidden_layers)
        writer.add_context_length(dims.max_position_embeddings)
        writer.add_embedding_length(dims.hidden_size)
        writer.add_feed_forward_length(dims.intermediate_size)
        writer.add_head_count(dims.num_attention_heads)
        writer.add_head_count_kv(dims.num_key_value_heads)
        writer.add_key_length(dims.head_dim)
        writer.add_value_length(dims.head_dim)
        writer.add_layer_norm_rms_eps(dims.rms_norm_eps)
        writer.add_vocab_size(dims.vocab_size)
        writer.add_rope_dimension_count(dims.head_dim)
        writer.add_rope_freq_base(dims.rope_theta)
        if dims.rope_scaling and dims.rope_scaling["rope_type"] == "linear":
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(dims.rope_scaling["factor"])

    def _architecture(self) -> Architecture:
        name, known = self._config.get("model_type"), plugins.names("architectures")
        if "quantization_config" in self._config:
            method = self._config["quantization_config"].get("quant_method", "an unknown method")
            raise CheckpointError(
                f"{self.place}: the weights are already quantized ({method})",
                hint="name the unquantized checkpoint that it was made from",
            )
        if name not in known:
            why = ", whose norms behind attention and MLP no rotation passes"
            raise CheckpointError(
                f"{self.place}: model_type {name!r} is not supported"
                + (why if name in NORMED_WRITERS else ""),
                hint="supported: " + ", ".join(known),
            )
        architecture: Architecture = plugins.find("architectures", name)
        for key, wanted in architecture.required.items():
            if (given := self._config.get(key, wanted)) != wanted:
                raise CheckpointError(
                    f"{self.place}: {key} {given!r} is not supported",
                    hint=f"{name} models are computed with {key} {wanted!r}",
                )
        return architecture

    def _dimensions(self) -> Dimensions:
        config, renamed = self._config, self.architecture.renamed
        names = {key: renamed.get(key, key) for key in REQUIRED}
        for key in names.values():
            if not isinstance(config.get(key), int):
                raise CheckpointError(
                    f"{self.place}: config.json has no usable {key}",
                    hint="take the config.json published with the model",
                )
        heads, partial = config["num_attention_heads"], self.architecture.partial_rotary
        theta, scaling = rope.of_config(config, self.place, partial=partial)
        return Dimensions(
            **{key: config[name] for key, name in names.items()},
            num_key_value_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            rms_norm_eps=config.get(
                renamed.get("rms_norm_eps", "rms_norm_eps"), self.architecture.usual_eps
            ),
            rope_theta=theta,
            rope_scaling=scaling,
            sliding_window=self._sliding_window(),
            tie_word_embeddings=bool(config.get("tie_word_embeddings", self.architecture.tied)),
            partial_rotary_factor=rope.share(config) if partial else 1.0,
        )

    def _sliding_window(self) -> int | None:
        """The window where all layers slide, None where none does."""
        config, layers = self._config, self._config["num_hidden_layers"]
        family_slides = self.architecture.name == "mistral"
        window: int | None = config.get("sliding_window", 4096 if family_slides else None)
        if window is None or not config.get("use_sliding_window", family_slides):
            return None
        if family_slides:
            return window
        full = min(config.get("max_window_layers", 28), layers)  # transformers' default
        kinds = set(
            config.get("layer_types")
            or ["full_attention"] * full + ["sliding_attention"] * (layers - full)
        )
        if len(kinds) > 1:
            raise CheckpointError(
                f"{self.place}: only some layers have a sliding window",
                hint="set use_sliding_window to false in config.json, as llama.cpp runs it",
            )
        return window if kinds == {"sliding_attention"} else None

    def _headers(self) -> dict[str, tuple[Path, _layout.Found]]:
        """Tensor → (file, what its header says), without rotary buffers."""
        files: dict[str, tuple[Path, _layout.Found]] = {}
        for path in self._shards():
            for name, entry in _header(path).items():
                if not name.endswith(IGNORED):
                    files[name] = path, entry
                    _refuse_unreadable(path, name, entry)
        return files

    def _shards(self) -> list[Path]:
        if (self.folder / "model.safetensors.index.json").is_file():
            weight_map = self._read_json("model.safetensors.index.json").get("weight_map", {})
            paths = [self.folder / name for name in sorted(set(weight_map.values()))]
        else:
            paths = [self.folder / "model.safetensors"]
        for path in paths:
            if not path.is_file():
                other = "" if any(self.folder.glob("*.safetensors")) else ", only safetensors do"
                raise CheckpointError(
                    f"{self.place}: {path.name} is missing",
                    hint=f"complete the download; other kinds of weights are not read{other}",
                )
        return paths

    def _read(self, name: str) -> Tensor:
        path, _ = self._files[name]
        with safe_open(path, framework="pt") as file:
            value: Tensor = file.get_tensor(name)
        return value

    def _drop_tied_copy(self) -> None:
        """A tied model may come with a copy of the embedding as its head, not with another."""
        head, embedding = map(self.architecture.hf_name, ("output", "token_embd"))
        if not (self.dimensions.tie_word_embeddings and {head, embedding} <= set(self._files)):
            return
        if not torch.equal(self._read(head), self._read(embedding)):
            raise CheckpointError(
                f"{self.place}: {head} differs from the embedding it is tied to",
                hint="if the head is meant, set tie_word_embeddings to false in config.json",
            )
        del self._files[head]

    def _read_json(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise CheckpointError(
                f"{self.place}: there is no readable {name}", hint=self._no_config_hint()
            ) from error
        except ValueError as error:
            raise CheckpointError(
                f"{self.place}: {name} is not valid JSON", hint="fetch the file again"
            ) from error
        return content

    def _no_config_hint(self) -> str:
        files = sorted(path.name for path in self.folder.glob("*.gguf"))
        if files:
            return f"to start from a GGUF file, name it: {files[0]}"
        if (self.folder / "adapter_config.json").is_file():
            return "this is an adapter: merge it into its base model first"
        return "a model folder has config.json, *.safetensors and tokenizer.json"


def _header(path: Path) -> dict[str, _layout.Found]:
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {
                name: _layout.Found(tuple(part.get_shape()), part.get_dtype())
                for name, part in slices.items()
            }
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path.name}: truncated or corrupted ({str(error).splitlines()[0]})",
            hint="the download may be incomplete: delete the file and fetch it again",
        ) from error


def _refuse_unreadable(path: Path, name: str, entry: _layout.Found) -> None:
    if entry.dtype not in READABLE:
        raise CheckpointError(
            f"{path.name}: {name} is stored as {entry.dtype}",
            hint="edgepack reads " + ", ".join(READABLE) + "; name an unquantized checkpoint",
        )
