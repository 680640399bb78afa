"""The host of `docs/workers.md` on a desktop: requests of pages go to workers, events come back.

A page says ids and names, never paths, and only the fields that are listed here go on to a worker.
Trainings and what changes the store happen on one thread; answers pass by it.
"""

from __future__ import annotations

import platform
import queue
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from edgepack.core.os_errors import from_os_error
from edgepack.core.untrusted import quote
from edgepack.demo import device, jobs, sent, timing
from edgepack.demo.events import Events
from edgepack.demo.programs import Programs
from edgepack.demo.store import Store
from edgepack.demo.training import Trainings
from edgepack.demo.worker import Json, Worker
from edgepack.errors import EdgepackError

LONGEST_ID = 64
LOOK = 15.0
"""Seconds between looks at battery and heat."""
TO_CHAT: dict[str, tuple[str, ...]] = {
    "load": ("context", "threads"),
    "adapters": (),
    "chat": (
        *("messages", "scales", "max_tokens", "temperature", "top_k", "top_p", "min_p"),
        *("repeat_penalty", "seed", "stop"),
    ),
    "render": ("messages", "add_generation_prompt"),
    "cancel": ("request",),
}
"""What a page may ask of `chat`, with the fields that go on as they are."""


class Host:
    """Answers `post`; everything that comes of it goes into `events`."""

    def __init__(self, store: Store, programs: Programs, threads: int = 0) -> None:
        self.store, self.events = store, Events()
        self._programs, self._threads = programs, threads
        paths = programs.paths
        self.chat = Worker("chat", paths["chat"])
        self.tune = Worker("tune", paths["tune"]) if "tune" in paths else None
        self._scribe = Worker("chat", paths["chat"])
        self._inspector = Worker("chat", paths["chat"])
        self._thread = ThreadPoolExecutor(1, "host")
        self._slow = ThreadPoolExecutor(1, "bench")
        self._bench: tuple[Any, threading.Event] | None = None
        self._closed = threading.Event()
        self._trainings: Trainings | None = None
        if self.tune is not None:
            tell = self._from("tune")
            self._trainings = Trainings(self.tune, self._scribe, store, tell, self._later)
        self._condition: Json = {}
        sent.clear()
        self._later(self._begin)
        threading.Thread(target=self._watch, daemon=True).start()

    def _begin(self) -> None:
        if self._trainings:
            self._condition = device.condition()
            self._trainings.heed(self._condition)
            self._trainings.resume()

    # ---------------------------------------------------------------- requests

    def post(self, request: Any) -> None:
        """A request of a page. What is wrong with it is said by an event."""
        name = request.get("id") if isinstance(request, dict) else None
        if not isinstance(name, str) or not 0 < len(name) <= LONGEST_ID or name[:5] == "host:":
            self._fail(None, EdgepackError("the request has no id"), "app")
            return
        answers = {
            "app": self._to_app,
            "chat": self._to_chat,
            "tune": self._to_tune,
            "bench": self._to_bench,
        }
        to = request.get("to")
        if not isinstance(to, str) or to not in answers:
            self._fail(name, EdgepackError("there is no worker of this name"), "app")
            return
        if to == "chat":  # an answer can be stopped while the thread is busy
            self._try(name, to, lambda: self._to_chat(request))
        else:
            self._later(lambda: self._try(name, to, lambda: answers[to](request)))

    def _to_app(self, request: Json) -> None:
        acts: dict[Any, Callable[[Json], Json]] = {
            "hello": self._hello,
            "models": self._models,
            "remove": self._remove,
            "jobs": self._jobs,
            "forget": self._forget,
            "device": lambda _: {"event": "device", **device.condition()},
            "cancel": lambda _: {"event": "done"},
        }
        what = request.get("do")
        act = acts.get(what) if isinstance(what, str) else None
        if act is None:
            raise EdgepackError("the app has no request of this name")
        self.events.put({"id": request["id"], "from": "app", **act(request)})

    def _hello(self, _: Json) -> Json:
        can = {"tune": self._programs.can("tune"), "bench": self._programs.can("bench")}
        return {
            "event": "hello",
            "host": "desktop",
            "version": version("edgepack"),
            "can": {**can, "import": True, "share": True},
            "device": {**device.describe(), "system": platform.system()},
        }

    def _models(self, _: Json) -> Json:
        return {"event": "models", "models": [m.describe() for m in self.store.models.values()]}

    def _remove(self, request: Json) -> Json:
        model, adapter = self.store.get(request.get("model")), request.get("adapter")
        if self._trainings and self._trainings.running(model.id, adapter):
            raise EdgepackError("it is being trained", hint="stop the training first")
        if adapter is None:
            self.store.remove(model)
            jobs.forget(model.id)
        else:
            self.store.remove_adapter(model, adapter)
        return {"event": "removed"}

    def _jobs(self, _: Json) -> Json:
        found = []
        for job in jobs.every():
            runs = bool(self._trainings and self._trainings.running(job.model, job.adapter))
            if job.model in self.store.models:
                about = {"model": job.model, "adapter": job.adapter, "running": runs}
                found.append({**about, "request": job.request})
        return {"event": "jobs", "jobs": found}

    def _forget(self, request: Json) -> Json:
        model, adapter = self.store.get(request.get("model")), request.get("adapter")
        if self._trainings and self._trainings.running(model.id, adapter):
            raise EdgepackError("it is being trained", hint="stop the training first")
        jobs.forget(model.id, str(adapter))
        return {"event": "forgotten"}

    def _to_chat(self, request: Json) -> None:
        what = request.get("do")
        if not isinstance(what, str) or what not in TO_CHAT:
            raise EdgepackError("a page has no request of this name")
        full = {key: request[key] for key in TO_CHAT[what] if key in request}
        if what in ("load", "adapters"):
            model = self.store.get(request.get("model"))
            named = request.get("adapters") or []
            if not isinstance(named, list):
                raise EdgepackError("adapters: a list of names is expected")
            full["adapters"] = {str(name): str(model.adapter(name)) for name in named}
            if what == "load":
                factors = str(model.factors.resolve()) if model.factors else None
                full |= {"model": str(model.base.file.resolve()), "factors": factors}
                full["threads"] = full.get("threads") or self._threads
        self.chat.ask({"id": request["id"], "do": what, **full}, self._from("chat"))

    def _to_tune(self, request: Json) -> None:
        if self._trainings is None:
            raise EdgepackError(str(self._programs.can("tune")))
        what = request.get("do")
        if what == "cancel":
            if not self._trainings.cancel(request.get("request")):
                raise EdgepackError("there is no such training")
            self.events.put({"id": request["id"], "event": "done", "from": "tune"})
        elif what in ("plan", "train"):
            full = {**request, "threads": request.get("threads") or self._threads}
            (self._trainings.plan if what == "plan" else self._trainings.train)(full)
        else:
            raise EdgepackError("a page has no request of this name")

    def _to_bench(self, request: Json) -> None:
        name = request["id"]
        if request.get("do") == "cancel":
            if self._bench and self._bench[0] == request.get("request"):
                self._bench[1].set()
            self.events.put({"id": name, "event": "done", "from": "bench"})
            return
        if request.get("do") != "bench":
            raise EdgepackError("a page has no request of this name")
        if "bench" not in self._programs.paths:
            raise EdgepackError(str(self._programs.can("bench")))
        if self._bench:
            raise EdgepackError("a benchmark is under way", hint="wait for its end")
        model, stop = self.store.get(request.get("model")), threading.Event()
        program = self._programs.paths["bench"]
        full = {**request, "threads": request.get("threads") or self._threads}
        tell = self._from("bench")

        def case(event: Json) -> None:
            tell({**event, "id": name})

        def run() -> None:
            try:
                measured = timing.measure(model, full, program, case, stop.is_set)
                tell({"id": name, "event": "benched", "bench": measured})
            finally:
                self._bench = None

        self._bench = (name, stop)
        self._slow.submit(self._try, name, "bench", run)

    # ---------------------------------------------------------------- files

    def take(self, request: Json, files: dict[str, Path]) -> None:
        """Files of an `import` are here, by the names that they had; the page is told what comes
        of it. Raises nothing."""

        def run() -> None:
            try:
                self._take(request, files)
            finally:
                sent.drop(files.values())

        self._later(lambda: self._try(request["id"], "app", run))

    def _take(self, request: Json, files: dict[str, Path]) -> None:
        self.events.put(
            {"id": request["id"], "event": "progress", "from": "app", "share": 1, "label": ""}
        )
        if request["kind"] == "adapter":
            model = self.store.get(request.get("model"))
            if len(files) != 1:
                raise EdgepackError("choose one file")
            sent.take_adapter(model, *next(iter(files.items())), self._inspect)
        else:
            model = sent.take_model(self.store, files, self._inspect)
        about = {"event": "imported", "from": "app", "model": model.describe()}
        self.events.put({"id": request["id"], **about})

    def adapter_file(self, model: object, adapter: object) -> Path:
        """The file that `share` hands to the person."""
        return self.store.get(model).adapter(adapter)

    def _inspect(self, path: Path, name: str) -> Json:
        """What `edgepack-chat` finds in a file; in a process of its own, which a damaged file may
        end."""
        said: queue.Queue[Json] = queue.Queue()
        self._inspector.ask({"id": "host:inspect", "do": "inspect", "file": str(path)}, said.put)
        try:
            event = said.get(timeout=120)
        except queue.Empty:
            event = {"event": "failed", "message": "the file could not be read in time"}
        self._inspector.close()
        if event["event"] == "failed":
            gone = "it ends the program that reads it"
            what = gone if event.get("ended") else event["message"]
            raise EdgepackError(f"{quote(name)}: {what}", hint=event.get("hint"))
        return event

    # ---------------------------------------------------------------- around it

    def _from(self, worker: str) -> Callable[[Json], None]:
        return lambda event: self.events.put({**event, "from": worker})

    def _later(self, step: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # it is closed
            self._thread.submit(self._try, None, "app", step)

    def _try(self, name: str | None, to: str, step: Callable[[], None]) -> None:
        """Do a step; what it cannot do is told."""
        try:
            step()
        except Exception as error:
            known = error if isinstance(error, EdgepackError) else from_os_error(error)
            self._fail(name, known or EdgepackError(f"defect: {type(error).__name__}"), to)
            if known is None:
                raise

    def _fail(self, name: str | None, error: EdgepackError, to: str) -> None:
        message = {"message": error.message, **({"hint": error.hint} if error.hint else {})}
        self.events.put({"id": name, "event": "failed", "from": to, **message})

    def _watch(self) -> None:
        """Look at battery and heat now and then; pages hear of changes."""
        while not self._closed.wait(LOOK):
            now = device.condition()
            told = ("battery", "charging", "thermal")
            if [now[key] for key in told] != [self._condition.get(key) for key in told]:
                self.events.put({"id": None, "event": "device", "from": "app", **now})
            self._condition = now
            if self._trainings:
                self._later(lambda now=now: self._trainings.heed(now))  # type: ignore[misc]

    def close(self) -> None:
        """End all workers."""
        self._closed.set()
        if self._bench:
            self._bench[1].set()
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._slow.shutdown(wait=False, cancel_futures=True)
        for worker in (self.chat, self.tune, self._scribe, self._inspector):
            if worker is not None:
                worker.close()
        for process in psutil.Process().children(recursive=True):  # a benchmark's round
            with suppress(psutil.Error):
                process.kill()
