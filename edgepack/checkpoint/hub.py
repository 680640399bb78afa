"""Models on the Hugging Face Hub: downloaded, or found in the cache."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from edgepack.checkpoint import shards
from edgepack.checkpoint.folder import FILES
from edgepack.errors import CheckpointError

ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?(@[\w./-]+)?")
"""``name`` or ``owner/name``, with an optional branch, tag or commit after ``@``."""


def snapshot(model: str, files: Sequence[str] = FILES, *, complete: bool = True) -> Path:
    """The folder of a repository's `files` in the cache, named by the commit; `complete`, with all
    weights that its index names."""
    from huggingface_hub import snapshot_download

    name, _, revision = model.partition("@")
    with explained(model):
        folder = snapshot_download(name, revision=revision or None, allow_patterns=list(files))
        if complete and (missing := shards.missing(Path(folder))):
            snapshot_download(name, revision=Path(folder).name, allow_patterns=missing)
    return Path(folder)


def cached(model: str) -> Path | None:
    """The folder in the cache, if all weights are there; nothing is asked of the network."""
    from huggingface_hub import errors, snapshot_download

    name, _, revision = model.partition("@")
    try:
        folder = Path(snapshot_download(name, revision=revision or None, local_files_only=True))
    except (errors.LocalEntryNotFoundError, errors.HFValidationError, OSError):
        return None
    whole = (folder / shards.SINGLE).exists() or (folder / shards.INDEX).is_file()
    return folder if whole and not shards.missing(folder) else None


@contextmanager
def explained(model: str) -> Iterator[None]:
    """What goes wrong between here and the Hub becomes a line and a hint."""
    from huggingface_hub import constants, errors

    name, _, revision = model.partition("@")
    page = f"https://huggingface.co/{name}"
    try:
        yield
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{name}: the model is gated", hint=f"accept its terms at {page}, then: hf auth login"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(
            f"{name}: there is no revision {revision!r}",
            hint=f"see the branches and tags at {page}",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{name}: no such folder here, and no such model on the Hub (or it is private)",
            hint="check the spelling; for a private model: hf auth login",
        ) from error
    except errors.LocalEntryNotFoundError as error:
        offline = constants.HF_HUB_OFFLINE
        reason = "HF_HUB_OFFLINE is set" if offline else "the Hub cannot be reached"
        raise CheckpointError(
            f"{model}: no such folder here, not in the Hub's cache, and {reason}",
            hint=f"unset HF_HUB_OFFLINE, or elsewhere: hf download {name}"
            if offline
            else "check the network, or give the path of a local copy",
        ) from error
    except (errors.HFValidationError, errors.HTTPError, OSError) as error:  # type: ignore[attr-defined]
        raise CheckpointError(
            f"{model}: cannot be downloaded ({_reason(error)})",
            hint="check the name, the network and the space on the disk; a local folder works too",
        ) from error


def _reason(error: Exception) -> str:
    response = getattr(error, "response", None)
    if response is not None and response.status_code == 401:
        return "401: not logged in, or the token has expired; hf auth login"
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
