"""One training at a time: the text for replay, the training, its result in the model's folder.

It waits while the battery is low or the machine is hot: the worker is told to stop, which keeps its
state, and gets the same request again when that is over. All of this happens on the host's thread.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from edgepack.core.artifact import digest
from edgepack.demo import jobs
from edgepack.demo.jobs import Job
from edgepack.demo.publish import publish
from edgepack.demo.store import Model, Store, home
from edgepack.demo.worker import Json, Worker
from edgepack.errors import EdgepackError
from edgepack.finetune import general

LEAST_BATTERY = 0.2
FIELDS = ("mode", "examples", "options", "threads")
"""What a page says of a training; everything else is the host's."""

Later = Callable[[Callable[[], None]], None]


class Trainings:
    """`tell` gets the events of the page's request; `later` does something on the host's thread."""

    def __init__(
        self, tune: Worker, scribe: Worker, store: Store, tell: Callable[[Json], None], later: Later
    ) -> None:
        self._tune, self._scribe, self._store = tune, scribe, store
        self._tell, self._later = tell, later
        self.job: Job | None = None
        self._id: Any = None
        self._asked: tuple[Worker, str] | None = None
        self._number = 0
        self._stopping = False
        self._waits_for: str | None = None
        self._device: Json = {}
        self._seen: dict[str, Json] = {}

    def running(self, model: str, adapter: object = None) -> bool:
        """Whether the one that is under way is this model's, and this adapter's."""
        job = self.job
        return job is not None and job.model == model and adapter in (None, job.adapter)

    def plan(self, request: Json) -> None:
        """What would be needed; nothing begins."""
        model = self._store.get(request.get("model"))
        if self.job is not None:
            raise EdgepackError("a training is under way", hint="wait for it, or stop it")
        full = self._complete({**request, "do": "plan"}, model, None)
        self._tune.ask(full, self._tell)

    def train(self, request: Json) -> None:
        """Begin, or go on; if just this is under way, tell its events to the new request."""
        model = self._store.get(request.get("model"))
        if self.job is not None:
            if not self.running(model.id, request.get("adapter")):
                raise EdgepackError("another training is under way", hint="wait for it, or stop it")
            self._id = request["id"]
            for event in self._seen.values():
                self._say(event)
            return
        if any(found.name == request.get("adapter") for found in model.learnt()):
            raise EdgepackError(f"{model.name} has already learnt something called so")
        _check_kept(request)
        self.job = jobs.keep(request)
        self._id, self._seen, self._stopping = request["id"], {}, False
        self._go()

    def cancel(self, name: object) -> bool:
        """Stop as a person wishes; the state stays. False if it is no training's id."""
        if self.job is None or name != self._id:
            return False
        self.job = self.job.save(stopped=True)
        self._stopping = True
        if self._asked is None:
            self._finish({"event": "ended", "reason": "cancelled"})
        else:
            self._halt()
        return True

    def resume(self) -> None:
        """Go on with one that the end of another relay broke off."""
        for left in list(jobs.every()):
            try:
                model = self._store.get(left.model)
            except EdgepackError:
                continue  # it belongs to a folder that was not named this time
            try:
                if left.out.is_file():
                    self._publish(left, model)
                elif self.job is None and not left.stopped:
                    self.train(left.request)
            except EdgepackError:  # `jobs` still has it; who goes on with it hears the reason
                left.save(stopped=True)

    def heed(self, device: Json) -> None:
        """The battery and the heat as they are now."""
        self._device = device
        if self.job is None or self._stopping:
            return
        reason = self._reason_to_wait()
        if reason and not self._waits_for:
            self._wait(reason)
            self._halt()
        elif not reason and self._waits_for and self._asked is None:
            self._go()

    def _reason_to_wait(self) -> str | None:
        battery = self._device.get("battery")
        low = battery is not None and battery < LEAST_BATTERY and not self._device.get("charging")
        return "heat" if self._device.get("thermal") == "severe" else "battery" if low else None

    def _wait(self, reason: str) -> None:
        self._waits_for = reason
        self._say({"event": "waiting", "reason": reason})

    def _go(self) -> None:
        """Do the next step; if it cannot be done, the training has failed."""
        self._do(self._step)

    def _do(self, step: Callable[[], None]) -> None:
        try:
            step()
        except EdgepackError as error:
            self._finish({"event": "failed", "message": error.message, "hint": error.hint or ""})
        except OSError:
            hint = "the disk may be full: free some space, then go on"
            self._finish({"event": "failed", "message": "it cannot be written", "hint": hint})

    def _step(self) -> None:
        """To wait, to write the text for replay, or to train."""
        assert self.job is not None
        model = self._store.get(self.job.model)
        self._waits_for = None
        self._seen.pop("waiting", None)
        if reason := self._reason_to_wait():
            self._wait(reason)
        elif _replays(self.job.request) and not _replay_file(model).is_file():
            self._load_scribe(model)
        else:
            full = self._complete({**self.job.request, "do": "train"}, model, self.job)
            self._ask(self._tune, full, self._train_said)

    def _ask(self, worker: Worker, request: Json, hear: Callable[[Json], None]) -> None:
        """Ask a worker; what it says is heard on the host's thread."""
        self._number += 1
        name = f"host:{self._number}"
        self._asked = (worker, name)

        def heard(event: Json) -> None:
            def step() -> None:
                if self._asked == (worker, name):
                    self._do(lambda: hear(event))

            self._later(step)

        worker.ask({**request, "id": name}, heard)

    def _halt(self) -> None:
        if self._asked is not None:
            worker, name = self._asked
            self._number += 1
            request = {"id": f"host:{self._number}", "do": "cancel", "request": name}
            worker.ask(request, lambda event: None)

    # the text for replay, by a chat of its own

    def _load_scribe(self, model: Model) -> None:
        request = {"do": "load", "adapters": {}, "context": 2048, "threads": 0, **_files(model)}

        def said(event: Json) -> None:
            if event["event"] == "loaded":
                self._write_replay(model)
            elif event["event"] == "failed":
                self._over(event)

        self._ask(self._scribe, request, said)

    def _write_replay(self, model: Model) -> None:
        if self._stopping or self._waits_for:
            self._over({"event": "ended", "reason": "cancelled"})
            return
        file = _replay_file(model)
        partial = file.with_suffix(".partial")
        file.parent.mkdir(parents=True, exist_ok=True)

        def said(event: Json) -> None:
            if event["event"] == "progress":
                self._say({"event": "progress", "share": event["share"], "label": "replay"})
            elif event["event"] == "written" and not (self._stopping or self._waits_for):
                partial.replace(file)
                self._scribe.close()
                self._asked = None
                self._go()
            elif event["event"] in ("written", "failed"):
                self._over({**event, "reason": "cancelled"})

        size = {"count": general.REPLAYED, "tokens": general.LENGTH + 1}
        self._ask(self._scribe, {"do": "write", **size, "seed": 0, "out": str(partial)}, said)

    # the training

    def _complete(self, request: Json, model: Model, job: Job | None) -> Json:
        """A page's request as the worker gets it. Without a job it is only planned."""
        folder = job.folder if job else home() / "plan"
        replay = _replay_file(model)
        options = request.get("options")
        return {
            "id": request["id"],
            "do": request["do"],
            **{key: request[key] for key in FIELDS if key in request},
            "options": options if isinstance(options, dict) else {},
            **_files(model),
            "replay": str(replay) if _replays(request) and replay.is_file() else None,
            "out": str(folder / "adapter.gguf"),
            "state": str(folder / "state"),
            "marks": {
                "edgepack.base.name": model.base.identity.name,
                "edgepack.base.digest": model.base.identity.digest,
            },
        }

    def _train_said(self, event: Json) -> None:
        if event["event"] in ("ended", "failed"):
            self._over(event)
        else:
            self._say(event)

    def _over(self, event: Json) -> None:
        """What a worker was asked has come to its end."""
        assert self.job is not None
        self._asked = None
        self._scribe.close()
        if event.get("reason") == "cancelled" and self._waits_for and not self._stopping:
            if not self._reason_to_wait():  # it was over before the worker had stopped
                self._go()
            return
        if event["event"] == "ended" and event.get("reason") != "cancelled":
            self._publish(self.job, self._store.get(self.job.model), event)
        self._finish(event)

    def _publish(self, job: Job, model: Model, ended: Json | None = None) -> None:
        """Put what was trained into the model's folder, and forget the job."""
        plan, ended = self._seen.get("planned", {}), ended or {}
        options = job.request.get("options") or {}
        publish(
            model,
            job.adapter,
            job.out,
            {
                "mode": job.request.get("mode", "stack"),
                "lora_alpha": options.get("lora_alpha", 16),
                "by": "edgepack-tune",
                "r": options.get("r", 8),
                "examples": plan.get("examples", len(job.request.get("examples", []))),
                "skipped": plan.get("skipped", []),
                "parameters": ended.get("parameters"),
                "losses": ended.get("losses"),
                "trained": digest(job.out)["sha256"],
            },
        )
        jobs.forget(job.model, job.adapter)

    def _finish(self, event: Json) -> None:
        assert self.job is not None
        if event["event"] == "failed":
            with suppress(OSError):  # a full disk; then it fails once more
                self.job.save(stopped=True)
        self._say(event)
        self._tune.close()
        self.job, self._asked, self._waits_for = None, None, None

    def _say(self, event: Json) -> None:
        if event["event"] in ("planned", "step", "waiting"):
            self._seen[event["event"]] = event
        self._tell({**event, "id": self._id})


def _check_kept(request: Json) -> None:
    """Refuse a request whose parts are not what is read of them when it goes on, perhaps by another
    relay."""
    for key, kind in (("adapter", str), ("options", dict), ("examples", list)):
        value = request.get(key)
        if not isinstance(value, kind) and (key in request or key == "adapter"):
            raise EdgepackError(f"{key}: a {NAMES[kind]} is expected")


NAMES = {str: "name", dict: "mapping", list: "list"}


def _replays(request: Json) -> bool:
    options = request.get("options")
    return not isinstance(options, dict) or options.get("replay", 0.5) != 0


def _replay_file(model: Model) -> Any:
    return home() / "replay" / f"{model.base.identity.digest[:32]}.json"


def _files(model: Model) -> Json:
    return {
        "model": str(model.base.file.resolve()),
        "factors": str(model.factors.resolve()) if model.factors else None,
    }
