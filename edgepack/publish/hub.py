"""Files to a repository of the hub, in one commit.

huggingface_hub sends large files first, and the hub keeps every one that arrived (of storage in
chunks, every chunk), so that a second try sends the rest only. The commit comes last: nobody sees
half a model.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from edgepack.core.tables import format_size
from edgepack.core.untrusted import quote, shorten
from edgepack.errors import EdgepackError, ExportError, RecipeError
from edgepack.publish.folder import Upload

if TYPE_CHECKING:
    from huggingface_hub import HfApi

REPO = re.compile(r"(?:\w[\w.-]{0,95}/)?\w[\w.-]{0,95}", re.ASCII)
BRANCH = re.compile(r"\w[\w./-]{0,199}", re.ASCII)
MAIN = "main"
ALONE = 10_000_000
"""Bytes from which on a file is sent alone."""
CARD = "README.md"
"""Warnings that name it are the hub's about the card; others are of libraries about themselves."""
LOGIN = "hf auth login stores one, or set HF_TOKEN; https://huggingface.co/settings/tokens makes it"
AGAIN = "run it again: what has arrived is not sent again"
REFUSED = {
    400: ("{repo}: the hub refuses it ({reason})", "see what it says of the name or the card"),
    401: ("{repo}: the hub does not know the token", LOGIN),
    403: ("{repo}: the token may not write there", "take one with the right to write to {repo}"),
    404: ("{repo}: there is no such place, or the token cannot see it", "check the spelling"),
    409: ("{repo}: somebody else changes it at the same time", AGAIN),
    412: ("{repo}: somebody else changes it at the same time", AGAIN),
    413: ("{repo}: the hub takes no file of that size", "merge with a smaller --out-shard-size"),
    429: ("{repo}: too many requests for now", f"wait some minutes, then {AGAIN}"),
}
"""Status of an answer → what it means here, and what to do."""


def check_names(repo: str, revision: str | None) -> None:
    """Refuse what is no name of a repository or a branch."""
    if not REPO.fullmatch(repo) or ".." in repo or "--" in repo or repo.endswith(".git"):
        raise RecipeError(f"REPO: {quote(repo)} is no name", hint="write OWNER/NAME")
    if revision is not None and (not BRANCH.fullmatch(revision) or ".." in revision):
        raise RecipeError(
            f"--revision: {quote(revision)} is no name of a branch", hint="write a word, as in git"
        )


def require_access() -> None:
    """Refuse at once where nothing can be sent: offline, or without a token."""
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise ExportError("HF_HUB_OFFLINE is set: nothing can be sent", hint="unset it")
    if not get_token():
        raise ExportError("there is no token for the hub", hint=LOGIN)


def send(
    upload: Upload,
    repo: str,
    *,
    public: bool,
    revision: str | None,
    message: str,
    tell: Callable[[str], None],
) -> str:
    """Make the repository if it is not there, and send the files in one commit; its address.

    A repository that is public already is refused unless `public`. `tell` gets remarks. Raises
    `ExportError` for whatever the hub or the network refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with explained(repo):
        repo = api.create_repo(repo, private=not public, exist_ok=True, repo_type="model").repo_id
        _check_visibility(api, repo, public, tell)
        if revision not in (None, MAIN):
            api.create_branch(repo, branch=str(revision), exist_ok=True)
        with warnings.catch_warnings(record=True) as noted:
            warnings.simplefilter("always")
            files = _operations(upload)
            _send_large(api, repo, files, revision, tell)
            commit = api.create_commit(repo, files, commit_message=message, revision=revision)
        for said in (" ".join(str(one.message).split()) for one in noted):
            if CARD in said:
                tell(f"the hub: {shorten(said, 200)}")
        return str(commit.commit_url)


def _operations(upload: Upload) -> list[Any]:
    from huggingface_hub import CommitOperationAdd

    files = {name: str(upload.folder / name) for name in upload.files}
    contents: dict[str, Any] = {**files, **upload.made}
    return [CommitOperationAdd(name, content) for name, content in sorted(contents.items())]


def _send_large(
    api: HfApi, repo: str, files: list[Any], revision: str | None, tell: Callable[[str], None]
) -> None:
    """One after the other, in this thread: of several in threads, Ctrl-C would wait for the end."""
    large = [file for file in files if file.upload_info.size >= ALONE]
    for number, file in enumerate(large, 1):
        size = format_size(file.upload_info.size)
        tell(f"{number} of {len(large)}: {file.path_in_repo}, {size}")
        api.preupload_lfs_files(repo, [file], revision=revision, free_memory=False)


def _check_visibility(api: HfApi, repo: str, public: bool, tell: Callable[[str], None]) -> None:
    """Never put into the open what was not meant to be."""
    private = api.repo_info(repo).private
    if not private and not public:
        raise ExportError(
            f"{repo}: exists, and everybody can read it",
            hint="--public says that this is meant; else take another name",
        )
    if private and public:
        tell(f"{repo} stays private: change it in its settings")


@contextmanager
def explained(repo: str) -> Iterator[None]:
    """What goes wrong between here and the hub, in one line."""
    try:
        yield
    except EdgepackError:
        raise
    except Exception as error:
        known = _explain(error, repo)
        if known is None:
            raise
        raise known from error


def _explain(error: Exception, repo: str) -> ExportError | None:
    """The error that a user can act on; None for a bug."""
    for cause in _causes(error):
        response = getattr(cause, "response", None)
        if response is not None and hasattr(response, "status_code"):
            return _of_status(int(response.status_code), cause, repo)
    for cause in _causes(error):
        if isinstance(cause, OSError) or _is_of_network(cause):
            what = shorten(str(cause) or type(cause).__name__, 100)
            return ExportError(f"{repo}: the connection to the hub failed ({what})", hint=AGAIN)
    if isinstance(error, RuntimeError | ValueError):  # as huggingface_hub raises them
        return ExportError(f"{repo}: cannot be sent ({_line(error)})", hint=AGAIN)
    return None


def _of_status(status: int, error: BaseException, repo: str) -> ExportError:
    reason = _line(error)
    message, hint = REFUSED.get(status, ("{repo}: the hub answers {status} ({reason})", AGAIN))
    filled = {"repo": repo, "status": status, "reason": reason}
    return ExportError(message.format(**filled), hint=hint.format(**filled))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _is_of_network(error: BaseException) -> bool:
    """Errors of the client's library, whose name changes with its versions."""
    return type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "requests")


def _line(error: BaseException) -> str:
    said = getattr(error, "server_message", None) or str(error)
    return shorten(" ".join(str(said).split()), 150)
