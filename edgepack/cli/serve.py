"""`edgepack serve`: a packed model behind OpenAI's API, on this machine."""

from __future__ import annotations

import socket
from contextlib import closing, suppress
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from edgepack.cli._adapters import AdapterNames, Adapters
from edgepack.cli._app import app, say
from edgepack.errors import EdgepackError, missing_extra

_MODULES = (
    *("llama_cpp", "fastapi", "pydantic_settings"),
    *("sse_starlette", "starlette_context", "uvicorn"),
)
"""What llama-cpp-python's server imports."""


@app.command()
def serve(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="An output folder (gguf), or a .gguf file.")
    ],
    adapter: AdapterNames = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen at; 0.0.0.0: all networks.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(metavar="N", min=0, max=65535, help="Port; 0: a free one.")
    ] = 8080,
    context: Annotated[
        int, typer.Option(metavar="N", min=64, help="Tokens the model sees at once.")
    ] = 2048,
    threads: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Default: one for each core.")
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(metavar="K", envvar="EDGEPACK_API_KEY", help="Key that requests must have."),
    ] = None,
) -> None:
    """Serve a packed model to programs that speak OpenAI's API, until Ctrl-C.

    A request's `model` is NAME, the folder's, or NAME:ADAPTER with an adapter in DIR/adapters for
    this request alone; /v1/models lists them. --adapter offers some only, or with other scales.
    """
    if not all(map(find_spec, _MODULES)):
        raise missing_extra("llama-cpp-python's server", "serve")
    files = _files(folder, adapter or [])
    with closing(_listen(host, port)) as listener:
        _run(files, listener, context=context, threads=threads, api_key=api_key)


class _Files(NamedTuple):
    """What is served."""

    name: str
    base: Path
    factors: Path | None = None
    adapters: dict[str, Path] = {}  # noqa: RUF012  (a NamedTuple's default, never changed)
    scales: dict[str, float] = {}  # noqa: RUF012


def _files(path: Path, asked: list[str]) -> _Files:
    """The files of a folder, or the one file."""
    from edgepack.core.artifact import Artifact

    if path.is_file() and path.suffix == ".gguf":
        if asked:
            raise EdgepackError(
                f"--adapter {asked[0]}: {path} is a single file", hint="name an output folder"
            )
        return _Files(path.stem, path)
    artifact = Artifact.open(path)
    target = artifact.manifest["target"]
    if target != "gguf":
        raise EdgepackError(
            f"{path}: {target} folders cannot be served, llama.cpp runs GGUF only",
            hint=f"edgepack chat {path}, or build it with --target gguf",
        )
    entries = Adapters(path, asked, others=not asked).entries
    return _Files(
        path.resolve().name,
        artifact.base,
        artifact.factors,
        {name: entry.path for name, entry in entries.items()},
        {name: entry.when_on for name, entry in entries.items()},
    )


def _listen(host: str, port: int) -> socket.socket:
    """A socket at that address, before minutes are spent on loading a model."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise EdgepackError(
            f"cannot listen at {host}, port {port}: {error.strerror}",
            hint="another program may use it: give another --port, or 0 for a free one",
        ) from error


def _run(
    files: _Files,
    listener: socket.socket,
    *,
    context: int,
    threads: int | None,
    api_key: str | None,
) -> None:
    """Load the model and answer requests until a signal comes."""
    import uvicorn

    from edgepack.runtimes.serve import Models, make_app
    from edgepack.runtimes.served_llama import ServedLlama

    loaded = ServedLlama(files.base, files.factors, files.adapters, context, threads)
    with closing(loaded) as llama:
        models = Models(llama, files.name, files.scales)
        config = uvicorn.Config(make_app(models, api_key), log_level="warning", lifespan="off")
        server = uvicorn.Server(config)
        leave = server.handle_exit

        def end(number: int, frame: Any) -> None:
            llama.stop()
            leave(number, frame)

        server.handle_exit = end
        host, port = listener.getsockname()[:2]
        say(f"{', '.join(models)} at http://{f'[{host}]' if ':' in host else host}:{port}/v1")
        if not ip_address(host).is_loopback and api_key is None:
            say("(anyone who reaches this machine can use it; --api-key keeps others out)")
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listener])
