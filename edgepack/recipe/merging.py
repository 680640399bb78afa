"""The section `merge` of a recipe: mergekit's schema, as its users write it.

What a method is and which parameters it has is not known here: `edgepack.merge.layout` checks a
merge against its method, still before any weight is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    WithJsonSchema,
    model_validator,
)

from edgepack.core.untrusted import quote
from edgepack.recipe.calibrate import Calibration, Objective
from edgepack.recipe.fields import MAX_STEPS, MAX_WIDTH, FileName, PathText, check_plain_text
from edgepack.recipe.references import ModelReference, Reference, parse

MAX_MODELS = 1000
DTYPES = {
    "bfloat16": "BF16",
    "bf16": "BF16",
    "float16": "F16",
    "fp16": "F16",
    "half": "F16",
    "float32": "F32",
    "fp32": "F32",
    "float": "F32",
    "float64": "F64",
}
"""Names of types in a recipe → as safetensors has them."""
NO_EXPERTS = "mixtures of experts (mergekit-moe) are not made here"
ELSEWHERE = {
    "modules": "models of several parts are not supported; write `models`",
    "gate_mode": NO_EXPERTS,
    "experts": NO_EXPERTS,
    "genome": "searches (mergekit-evolve) are not made here; write the merge that was found",
    "out_path": "a result is called by `name`, and the last one is written to OUT",
}
"""Keys of mergekit's other tools, and what is said of them."""
UNION, BASE = "union", "base"
Layer = Annotated[int, Field(ge=0, le=MAX_STEPS)]
Scalar = bool | int | float | str


def _setting(value: Any) -> Any:
    """The value of a parameter: a number, true or false, a list of these over depth, or a list of
    mappings with `filter` and `value`."""
    conditions = [value] if isinstance(value, dict) else value
    if isinstance(conditions, list) and any(isinstance(one, dict) for one in conditions):
        for one in conditions:
            if not isinstance(one, dict) or not {"value"} <= set(one) <= {"value", "filter"}:
                raise ValueError(f"takes mappings with filter and value, not {quote(one)}")
            if not isinstance(one.get("filter"), str | None):
                raise ValueError(f"filter is part of a tensor's name, not {quote(one['filter'])}")
            _gradient(one["value"])
        return conditions
    return _gradient(value)


def _gradient(value: Any) -> Any:
    """A number, or a list of numbers over depth."""
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(one, Scalar) for one in values):
        raise ValueError(f"takes a number, or a list of numbers over depth, not {quote(value)}")
    return value


def _dtype(value: str) -> str:
    if value.removeprefix("torch.") not in DTYPES:
        raise ValueError(f"is one of {', '.join(DTYPES)}, not {quote(value)}")
    return value.removeprefix("torch.")


Setting = Annotated[
    Any,
    PlainValidator(_setting),
    WithJsonSchema({"type": ["number", "boolean", "string", "array", "object"]}),
]
Parameters = Annotated[dict[str, Setting], Field(max_length=100)]
Dtype = Annotated[str, AfterValidator(_dtype)]


class Part(BaseModel):
    """A part of a merge: unknown keys are errors, keys without a value are as if not there."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_empty_keys(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: inner for key, inner in value.items() if inner is not None}


class Member(Part):
    """A model, and its own parameters."""

    model: ModelReference = Field(
        description="path_or_id[@revision][+adapter[@revision]], a .gguf file, or the name of "
        "another merge of the same file."
    )
    parameters: Parameters = Field({}, description="Of this model; they come first.")

    @model_validator(mode="before")
    @classmethod
    def _adapter_in_place(cls, value: Any) -> Any:
        if isinstance(value, dict) and "lora" in value:
            raise ValueError("lora: write model: MODEL+ADAPTER")
        return value


class Model(Member):
    """A model that is merged, and its own parameters."""

    text: PathText | None = Field(
        None,
        description="For `weighted`: a text file or a JSONL of chats that this model is for; "
        "default: the model writes its own.",
    )


class Source(Member):
    """Some layers of a model."""

    layer_range: tuple[Layer, Layer] = Field(
        description="First layer, and the one after the last: [0, 16]."
    )

    @model_validator(mode="after")
    def _some(self) -> Self:
        first, end = self.layer_range
        if first >= end:
            raise ValueError(f"layer_range: [{first}, {end}] has no layer; the end is not included")
        return self

    @property
    def layers(self) -> range:
        """The layers that it names."""
        return range(*self.layer_range)


class OutputSlice(Part):
    """Layers of the result: those of its sources, merged."""

    sources: list[Source] = Field(
        min_length=1, max_length=MAX_MODELS, description="What is merged, as many layers of each."
    )
    base_model: ModelReference | None = Field(None, description="In place of the merge's.")
    parameters: Parameters = Field({}, description="Of these layers; after those of a source.")
    residual_weight: float | None = Field(
        None, description="Accepted and not used, as in mergekit."
    )

    @model_validator(mode="after")
    def _alike(self) -> Self:
        counts = {len(source.layers) for source in self.sources}
        if len(counts) > 1:
            raise ValueError(f"sources: have {min(counts)} and {max(counts)} layers, not as many")
        return self


@dataclass(frozen=True)
class TokenOf:
    """The embedding of one token of a model (None: zeros)."""

    model: Reference | None
    token: str | None = None
    token_id: int | None = None

    def written(self) -> dict[str, Any]:
        """As recipes have it."""
        if self.model is None:
            return {"kind": "zero"}
        about = {"kind": "model_token", "model": str(self.model)}
        return about | (
            {"token": self.token} if self.token is not None else {"token_id": self.token_id}
        )


def _token_source(value: Any) -> Any:
    """A model, ``{kind: zero}``, or ``{kind: model_token, model, token | token_id}``."""
    if value is None or isinstance(value, TokenOf):
        return value
    if not isinstance(value, dict) or "kind" not in value:
        return parse(value)
    known = {"zero": {"kind"}, "model_token": {"kind", "model", "token", "token_id"}}
    kind = value["kind"]
    if not isinstance(kind, str) or kind not in known:
        raise ValueError(f"kind is zero or model_token, not {quote(kind)}")
    if unknown := sorted(set(value) - known[kind]):
        raise ValueError(f"{kind} has no key {quote(unknown[0])}")
    if kind == "zero":
        return TokenOf(None)
    given = [key for key in ("token", "token_id") if value.get(key) is not None]
    if "model" not in value or len(given) != 1:
        raise ValueError("model_token takes a model, and one of token and token_id")
    token, index = value.get("token"), value.get("token_id")
    if not isinstance(token, str | None) or not (index is None or type(index) is int):
        raise ValueError("token is a text, token_id a whole number")
    return TokenOf(parse(value["model"]), token, index)


def _written(source: Any) -> Any:
    """A reference, or the embedding of a token, as recipes have it."""
    if isinstance(source, TokenOf):
        return source.written()
    return str(source) if isinstance(source, Reference) else source


TokenSource = Annotated[
    Any,
    PlainValidator(_token_source),
    PlainSerializer(_written),
    WithJsonSchema({"type": ["string", "object"]}),
]


class Token(Part):
    """A token of the result: which model its embeddings come from."""

    source: TokenSource = Field(
        None, description="A model, {kind: zero}, or {kind: model_token, model, token}."
    )
    force: bool = Field(
        False, description="Also for models that have this token with other embeddings."
    )


def _tokenizer_source(value: Any) -> Any:
    return value if value is None or value in (UNION, BASE) else parse(value)


TokenizerSource = Annotated[
    Any,
    PlainValidator(_tokenizer_source),
    PlainSerializer(_written),
    WithJsonSchema({"type": ["string", "object"]}),
]


class Tokenizer(Part):
    """The tokenizer of the result."""

    source: TokenizerSource = Field(UNION, description="`union`, `base`, or a model.")
    tokens: Annotated[dict[str, Token], Field(max_length=100_000)] = Field(
        default_factory=dict, description="Token → where its embeddings come from."
    )
    pad_to_multiple_of: int | None = Field(
        None, ge=1, le=MAX_WIDTH, description="Rows of the embeddings: a multiple of this."
    )


class MergeCalibration(Calibration):
    """Calibration of the models of a weighted merge. Its default objective is the one that measures
    best there (docs/fisher.md)."""

    objective: Objective = Field("guided", description="`guided` or `model`, as in `calibrate`.")


class Merge(Part):
    """Several models as one: mergekit's schema. `modules` is refused."""

    name: FileName | None = Field(
        None, description="In a file of several merges: what the others call its result."
    )
    merge_method: str = Field(
        max_length=100, description="The method, such as ties; docs/merging.md has all."
    )
    models: list[Model] | None = Field(
        None, min_length=1, max_length=MAX_MODELS, description="What is merged, all layers of it."
    )
    slices: list[OutputSlice] | None = Field(
        None, min_length=1, max_length=MAX_MODELS, description="Or the result, layer by layer."
    )
    base_model: ModelReference | None = Field(
        None, description="What differences are taken to; its configuration and tokenizer are kept."
    )
    parameters: Parameters = Field({}, description="Of all models and layers; they come last.")
    dtype: Dtype | None = Field(
        None, description="Type that the weights are merged as; default: as they are stored."
    )
    out_dtype: Dtype | None = Field(
        None, description="Type that the result is stored as; default: `dtype`."
    )
    tokenizer_source: TokenizerSource | None = Field(
        None, description="`union`, `base`, or a model; default: the base's tokenizer as it is."
    )
    tokenizer: Tokenizer | None = Field(None, description="Or with more to say of its tokens.")
    chat_template: str | None = Field(
        None,
        max_length=100_000,
        description="`auto` (the most common among the models), the name of one (alpaca, chatml, "
        "llama3, mistral, exaone), or a template.",
    )
    weighted: Literal["fisher"] | None = Field(
        None,
        description="edgepack's own: `fisher` weights every model by the Fisher matrix of each of "
        "its weights, for linear and task_arithmetic.",
    )
    calibrate: MergeCalibration | None = Field(
        None,
        description="For `weighted`: how each model is calibrated; the keys of `calibrate`.",
    )

    @model_validator(mode="before")
    @classmethod
    def _none_of_other_tools(cls, value: Any) -> Any:
        for key, why in ELSEWHERE.items():
            if isinstance(value, dict) and key in value:
                raise ValueError(f"{key}: {why}")
        return value

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        if (self.models is None) == (self.slices is None):
            raise ValueError("give one of models and slices")
        if self.tokenizer_source is not None and self.tokenizer is not None:
            raise ValueError("give tokenizer or tokenizer_source, not both")
        check_plain_text(self.merge_method)
        return self

    @model_validator(mode="after")
    def _weighted(self) -> Self:
        """What belongs to `weighted` stands only beside it."""
        if self.weighted is None:
            if any(model.text is not None for model in self.models or ()):
                raise ValueError("text is for `weighted: fisher`")
            if self.calibrate is not None:
                raise ValueError("calibrate is for `weighted: fisher`")
            return self
        if self.slices is not None:
            raise ValueError("weighted: merges whole models; write `models` in place of `slices`")
        if self.calibrate is not None and self.calibrate.objective == "layer":
            raise ValueError("calibrate.objective: `layer` keeps no H; take model or guided")
        return self

    @property
    def tokenizer_model(self) -> Reference | None:
        """The model that `tokenizer_source` or `tokenizer.source` names; None if neither does."""
        given = self.tokenizer_source if self.tokenizer is None else self.tokenizer.source
        return given if isinstance(given, Reference) else None

    def references(self) -> Iterator[Reference]:
        """Every model that is merged, each once, in the order of the text; the base's own place is
        at the end unless it is merged too."""
        found: dict[Reference, None] = {}
        for model in self.models or ():
            found.setdefault(model.model)
        for output in self.slices or ():
            for source in output.sources:
                found.setdefault(source.model)
            if output.base_model is not None:
                found.setdefault(output.base_model)
        if self.base_model is not None:
            found.setdefault(self.base_model)
        yield from found

    def renamed(
        self, new: Callable[[str], str], new_text: Callable[[str], str] = lambda name: name
    ) -> Merge:
        """The same merge with other names for models and adapters, and for texts."""
        renamed = _renamed(self.model_dump(mode="json"), new)
        for model in renamed["models"] or ():
            if model["text"] is not None:
                model["text"] = new_text(model["text"])
        return Merge.model_validate(renamed)


_NAMES = ("model", "base_model", "tokenizer_source", "source")
"""Keys whose text is a reference."""


def _renamed(value: Any, new: Callable[[str], str]) -> Any:
    if isinstance(value, list):
        return [_renamed(one, new) for one in value]
    if not isinstance(value, dict):
        return value
    result = {}
    for key, inner in value.items():
        is_name = key in _NAMES and isinstance(inner, str) and inner not in (UNION, BASE)
        result[key] = str(parse(inner).renamed(new)) if is_name else _renamed(inner, new)
    return result
