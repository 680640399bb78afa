"""The model of a recipe: a name, or a base with adapters that are merged into it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from edgepack.recipe.fields import PathText, Section

MAX_ADAPTERS = 64


Adapters = Annotated[
    Annotated[PathText, Tag("<one>")]
    | Annotated[list[PathText], Field(min_length=1, max_length=MAX_ADAPTERS), Tag("<several>")],
    Discriminator(lambda value: "<several>" if isinstance(value, list | tuple) else "<one>"),
]
"""One adapter, or several. The tags are left out of errors (`read`)."""


class FineTune(Section):
    """A model and the PEFT adapters that its weights are changed by before anything else."""

    base: PathText | None = Field(
        None,
        description="The model that the adapter was trained on, named as `model` is; default: what "
        "its adapter_config.json says.",
    )
    adapter: Adapters = Field(
        description="A PEFT adapter (LoRA, rslora, DoRA, modules_to_save), as a folder or a hub id "
        "with optional @revision. Of a list, each changes what those before it made."
    )

    @property
    def adapters(self) -> list[str]:
        """The adapters in their order."""
        return [self.adapter] if isinstance(self.adapter, str) else list(self.adapter)

    def places(self) -> Iterator[tuple[str, str | None]]:
        """(key of the recipe, name) of the base and of every adapter."""
        yield "model.base", self.base
        if isinstance(self.adapter, str):
            yield "model.adapter", self.adapter
        else:
            yield from ((f"model.adapter.{i}", name) for i, name in enumerate(self.adapter))

    def __str__(self) -> str:
        return "+".join([self.base or "its base", *self.adapters])


def _kind(value: Any) -> str:
    return "<fine-tune>" if isinstance(value, dict | FineTune) else "<name>"


ModelSource = Annotated[
    Annotated[PathText, Tag("<name>")] | Annotated[FineTune, Tag("<fine-tune>")],
    Discriminator(_kind),
]
"""A name, or a fine-tune. The tags are left out of errors (`read`)."""
