"""`edgepack demo`: the page of the phone in this machine's browser, or as a folder to publish."""

from __future__ import annotations

import secrets
import socket
import webbrowser
from contextlib import closing, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgepack.cli._app import app, say
from edgepack.cli._web import DEFAULT_LENGTH, write_web
from edgepack.errors import EdgepackError, missing_extra

if TYPE_CHECKING:
    from edgepack.demo.programs import Programs
    from edgepack.demo.store import Store


@app.command()
def demo(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="DIR",
            help="Output folders (gguf), or .gguf files; the page can import others.",
        ),
    ] = None,
    port: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, max=65535, help="Port; browsers keep conversations by it. 0: any."
        ),
    ] = 8765,
    open_: Annotated[
        bool, typer.Option("--open/--no-open", help="Open the page in the browser.")
    ] = True,
    threads: Annotated[
        int, typer.Option(metavar="N", min=0, help="0: the number of fast cores less one.")
    ] = 0,
    web: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT", help="Write the page and the models as a folder for any web server."
        ),
    ] = None,
    node_modules: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="For --web: what `npm install` made; default: npm does."),
    ] = None,
    length: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, help="For --web: tokens of an example to learn; 0: no learning."
        ),
    ] = DEFAULT_LENGTH,
) -> None:
    """Chat with packed models and teach them notes, on a page in the browser, until Ctrl-C.

    The page is that of the Android app. What it teaches becomes an adapter in DIR/adapters.
    Nothing leaves this machine: the page is served to it alone. With --web the models run in
    the browser itself, in WebAssembly (docs/browser.md).
    """
    if web is not None:
        write_web(folders or [], web, node_modules, length)
        return
    if not all(map(find_spec, ("starlette", "uvicorn"))):
        raise missing_extra("the page's server", "serve")
    from edgepack.core.disk import clean, lock_of, locked
    from edgepack.demo.programs import make_programs
    from edgepack.demo.store import Store

    clean()
    with locked(lock_of("demo")) as mine, closing(_listen(port)) as listener:
        if not mine:
            raise EdgepackError(
                "another edgepack demo is running", hint="end it, or name all models there"
            )
        store = Store(folders or [])
        programs = make_programs(say)
        _serve(store, programs, listener, threads, show=open_)


def _listen(port: int) -> socket.socket:
    try:
        return socket.create_server(("127.0.0.1", port))
    except OSError as error:
        raise EdgepackError(
            f"cannot listen at port {port}: {error.strerror}",
            hint="another program may use it: give another --port, or 0 for a free one",
        ) from error


def _serve(
    store: Store, programs: Programs, listener: socket.socket, threads: int, *, show: bool
) -> None:
    """Answer the page until a signal comes; then end all workers."""
    import uvicorn

    from edgepack.demo.host import Host
    from edgepack.demo.relay import make_app

    port, token = listener.getsockname()[1], secrets.token_urlsafe(24)
    url = f"http://127.0.0.1:{port}/#token={token}"
    with closing(Host(store, programs, threads)) as host:
        config = uvicorn.Config(
            make_app(host, token, port),
            log_level="warning",
            lifespan="off",
            server_header=False,
            timeout_graceful_shutdown=1,
        )
        names = ", ".join(model.name for model in store.models.values())
        say(f"{names or 'no model yet'}: {url}")
        say("the address has the key to the page; Ctrl-C ends it")
        if show:
            webbrowser.open(url)
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listener])
