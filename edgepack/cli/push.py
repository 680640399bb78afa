"""`edgepack push`: an output folder becomes a repository of the Hugging Face Hub."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgepack.cli._app import Json, app, print_json, say
from edgepack.errors import ExportError

if TYPE_CHECKING:
    from edgepack.publish.folder import Upload

SHOWN = 5
"""Names of files that are left out that are printed."""


@app.command()
def push(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="An output folder, or an adapter's folder."),
    ],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="OWNER/NAME on the hub.")],
    public: Annotated[
        bool, typer.Option("--public", help="Everybody may read it; default: only you.")
    ] = False,
    revision: Annotated[
        str | None, typer.Option(metavar="BRANCH", help="Another branch than main; made if new.")
    ] = None,
    message: Annotated[
        str, typer.Option(metavar="TEXT", help="Of the commit.")
    ] = "Upload with edgepack",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the files, and send nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Upload a folder that edgepack wrote, with its card, to the Hugging Face Hub.

    GGUF, ONNX, merged checkpoints, adapters. Only files that manifest.json lists are sent, after
    their digests and what they hold are compared with it, in one commit; a folder without a
    README.md gets one on the hub. Files that name folders of this machine are refused. The token
    is that of `hf auth login` or HF_TOKEN. An upload that was stopped goes on when it is run again.
    """
    from edgepack.core.tables import align, format_size
    from edgepack.publish import hub
    from edgepack.publish.folder import gather

    hub.check_names(repo, revision)
    if not message.strip():
        raise ExportError("--message: is empty", hint="leave it out")
    if not dry_run:
        hub.require_access()
    upload = gather(folder)
    _check_structure(folder)
    _check_traces(upload, repo)
    sizes = upload.sizes()
    if not as_json:
        rows = [(name, format_size(size)) for name, size in sizes.items()]
        total = ("total", format_size(sum(sizes.values())))
        typer.echo("\n".join(align([("file", "size"), *rows, total])))
    if upload.left:
        more = f" and {len(upload.left) - SHOWN} more" if len(upload.left) > SHOWN else ""
        say(f"not sent, since edgepack did not write it: {', '.join(upload.left[:SHOWN])}{more}")
    address = None
    if not dry_run:
        if not sys.stderr.isatty():
            from huggingface_hub.utils.tqdm import disable_progress_bars

            disable_progress_bars()
        say(f"sending {format_size(sum(sizes.values()))} to {repo}")
        address = hub.send(
            upload, repo, public=public, revision=revision, message=message, tell=say
        )
    if as_json:
        print_json({"repo": repo, "files": sizes, "left": list(upload.left), "commit": address})
    elif address is None:
        typer.echo("\nnothing was sent (--dry-run)")
    else:
        typer.echo(f"\n{address}")


def _check_structure(folder: Path) -> None:
    """Refuse files that hold something else than the manifest says."""
    from edgepack.verify.run import structure
    from edgepack.verify.subject import Subject

    checks = structure(Subject.open(folder), adapters=False)  # most of them are not sent
    wrong = [check for check in checks if check.status == "failed"]
    if wrong:
        raise ExportError(
            f"{folder}: {wrong[0].name}: {wrong[0].detail}",
            hint="edgepack verify DIR names everything that is wrong; build it again",
        )


def _check_traces(upload: Upload, repo: str) -> None:
    """Refuse files that name folders of this machine; what may do so is shown."""
    from edgepack.publish import traces

    machine = traces.Machine.here(upload.folder, repo.rpartition("/")[0])
    found = [
        *traces.find(upload.folder, upload.files, machine),
        *traces.find_in(upload.made, machine),
    ]
    for trace in sorted(found, key=lambda trace: trace.certain):
        if trace.certain:
            raise ExportError(
                f"{trace.file}: names a folder of this machine: {trace.text}",
                hint="build it again with relative paths, or take the path out of its source",
            )
        say(f"warning: {trace.file} may say where it was made: {trace.text}")
