"""What `edgepack bench` and its workers say to each other: a job in, one JSON object a line out.

There are two workers that speak it: `edgepack.bench.worker` (Python, on this machine, GGUF and
ONNX) and `native/bench.cpp` (static, on phones and other machines, GGUF). A worker takes the
job as its only argument, and prints events as they happen. Seconds are wall-clock
seconds; sizes are bytes.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from edgepack.core.untrusted import explain, shorten
from edgepack.errors import EdgepackError

VERSION = 1
"""Of this protocol: both sides say it."""


class Part(BaseModel):
    """A value of the protocol: no unknown keys, and no changes."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Case(Part):
    """One thing to time, in a context that first gets `depth` tokens, untimed.

    `prompt`: the time of `tokens` tokens, run at once, with logits of the last one. `decode`: the
    time of `tokens` tokens, run one after another, logits of each. With `batch` above 1, that many
    sequences do so together, each with tokens and a history of its own. (As llama-bench's
    ``pp``, ``tg``, ``-d``, and llama-batched-bench's ``-npl``.)
    """

    kind: Literal["prompt", "decode"]
    tokens: int = Field(ge=1)
    depth: int = Field(default=0, ge=0)
    batch: int = Field(default=1, ge=1)

    @property
    def context(self) -> int:
        """Tokens that the context has to hold."""
        return (self.depth + self.tokens) * self.batch


class RunModel(Part):
    """Load a model, then time each case once, in order, after an untimed run of the first ones of
    each kind."""

    version: int = VERSION
    job: Literal["model"] = "model"
    model: str
    """Place of the .gguf or .onnx file."""
    adapters: tuple[tuple[str, float], ...] = ()
    """Places of adapters on top, with their scales."""
    threads: int = Field(ge=1)
    cases: tuple[Case, ...]


class ReadMemory(Part):
    """Read a block of memory from end to end, `rounds` times for each number of threads."""

    version: int = VERSION
    job: Literal["memory"] = "memory"
    threads: tuple[int, ...]
    bytes: int = 1 << 28
    """Far more than the last cache holds."""
    rounds: int = 5


class Multiply(Part):
    """Products of W ``[rows, columns]`` in each ggml type with `batches` many columns, by ggml's
    own kernels. There are as many different W as fill `bytes`, so that they come from memory, as a
    model's weights do."""

    version: int = VERSION
    job: Literal["multiply"] = "multiply"
    threads: int
    types: tuple[str, ...]
    """Names as in `edgepack.formats`, which are ggml's."""
    rows: int = 2048
    columns: int = 4096
    batches: tuple[int, ...] = (1, 256)
    bytes: int = 1 << 27
    rounds: int = 3


class Memory(Part):
    """Memory of the worker's process, by the system's accounting; None where it does not tell."""

    anonymous: int | None = None
    """Private memory: buffers, caches, weights that were copied (Linux: RssAnon)."""
    mapped: int | None = None
    """Pages of mapped files that are in memory: weights, libraries (Linux: RssFile, RssShmem)."""
    peak: int | None = None
    """Most resident memory until now (Linux: VmHWM)."""


class Started(Part):
    """First line: what runs."""

    event: Literal["started"] = "started"
    version: int
    runtime: str
    """Such as ``llama.cpp, ggml 0.25.3``."""
    features: str = ""
    """What of the CPU the runtime uses, in its own words."""
    memory: Memory


class Loaded(Part):
    """The model can be used."""

    event: Literal["loaded"] = "loaded"
    seconds: float
    memory: Memory


class Timed(Part):
    """A case was run; `index` is its place in the job."""

    event: Literal["case"] = "case"
    index: int
    seconds: float
    joules: float | None = None
    """Energy of the processor's package meanwhile, where the system tells (Linux: RAPL)."""
    memory: Memory


class Read(Part):
    """Memory was read."""

    event: Literal["memory"] = "memory"
    threads: int
    bytes_per_second: float


class Multiplied(Part):
    """A product was timed. `bytes` is the size of one W."""

    event: Literal["product"] = "product"
    type: str
    batch: int
    seconds: float
    bytes: int


class Ended(Part):
    """Last line."""

    event: Literal["ended"] = "ended"
    cpu_seconds: float
    """User and system time of the process."""
    memory: Memory


class Failed(Part):
    """The job cannot be done; the worker then exits with 1."""

    event: Literal["failed"] = "failed"
    message: str


Event = Started | Loaded | Timed | Read | Multiplied | Ended | Failed
Job = RunModel | ReadMemory | Multiply
_EVENT: TypeAdapter[Any] = TypeAdapter(Annotated[Event, Field(discriminator="event")])
_JOB: TypeAdapter[Any] = TypeAdapter(Annotated[Job, Field(discriminator="job")])


def read_job(text: str) -> Job:
    """A job from its JSON."""
    try:
        job: Job = _JOB.validate_json(text)
    except ValidationError as error:
        raise EdgepackError(
            f"this is no job: {shorten(explain(error), 500)}", hint="edgepack bench writes jobs"
        ) from None
    return job


def read_events(stdout: str, worker: str) -> list[Event]:
    """The events that a worker printed; `worker` is its name in errors.

    Raises `EdgepackError` for a job that failed, a line that is no event, and a worker of another
    version.
    """
    events: list[Event] = []
    for line in filter(None, stdout.splitlines()):
        try:
            event = _EVENT.validate_python(json.loads(line))
        except (ValueError, ValidationError, RecursionError):
            raise EdgepackError(
                f"{worker}: says {shorten(line, 80)!r}, which is no event",
                hint="worker and edgepack must be of the same version",
            ) from None
        if isinstance(event, Failed):
            raise EdgepackError(
                f"{worker}: {shorten(event.message, 500)}", hint="see that the model runs there"
            )
        if isinstance(event, Started) and event.version != VERSION:
            raise EdgepackError(
                f"{worker}: speaks version {event.version}, not {VERSION}",
                hint="build the workers again",
            )
        events.append(event)
    return events
