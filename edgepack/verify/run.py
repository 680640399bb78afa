"""All checks of a folder, those that read little first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from edgepack.adapters.base import GGUF, ONNX
from edgepack.core.progress import Progress, Steps
from edgepack.errors import EdgepackError
from edgepack.output.environment import differences, environment
from edgepack.verify import adapters as fitting
from edgepack.verify import claims, files, gguf, safetensors
from edgepack.verify.checks import Check, Failed, Skipped, Verified, carry_out
from edgepack.verify.measured import measure
from edgepack.verify.subject import Subject

STAGE = "verify"


@dataclass(frozen=True)
class Request:
    """What to look at. `adapters` are names in the folder or paths of others. With `measure` its
    measurements are made again, for which `model` and `text` say where the original and the text
    are, if that is not known here."""

    folder: Path
    adapters: tuple[str, ...] = ()
    measure: bool = False
    model: str | None = None
    text: Path | None = None


def verify(request: Request) -> Steps[Verified]:
    """Make all checks of a folder. Raises `EdgepackError` for what is no folder of edgepack's."""
    subject = Subject.open(request.folder)
    yield Progress(STAGE, 0, 3, "hashing")
    found = carry_out("files", partial(files.hashes, subject))
    whole = all(check.status == "ok" for check in found)
    found += carry_out("other files", partial(files.foreign, subject))
    yield Progress(STAGE, 1, 3, "structure")
    found += structure(subject, request.adapters)
    if subject.kind == ONNX and find_spec("onnx"):
        yield Progress(STAGE, 2, 3, "reading weights")
        from edgepack.verify import onnx

        found += carry_out("weights", partial(onnx.values, subject))
    found += carry_out("same bytes here", partial(same_bytes, subject))
    if request.measure:
        found += yield from _measured(subject, request, whole=whole)
    return Verified(request.folder, subject.kind, tuple(found))


def structure(
    subject: Subject, wanted: tuple[str, ...] = (), *, adapters: bool = True
) -> list[Check]:
    """The checks that read headers and small files: what `edgepack push` makes too."""
    if not subject.has_manifest:
        own = carry_out("structure", partial(fitting.alone, subject))
        return [*own, *(carry_out("base", partial(fitting.base, subject)) if adapters else ())]
    found = [check for name, one in _of_kind(subject) for check in carry_out(name, one)]
    found += fitting.checks(subject, wanted) if adapters else ()
    for name, check in (("pages", files.pages), ("software", files.bill)):
        found += carry_out(name, partial(check, subject))
    return found


def _of_kind(subject: Subject) -> Iterator[tuple[str, Callable[[], str]]]:
    """The checks of a kind of files, by name."""
    if subject.kind == ONNX and not find_spec("onnx"):
        yield "structure", _without_onnx
        return
    if subject.kind == ONNX:
        from edgepack.verify import onnx

        yield "structure", partial(onnx.structure, subject)
        yield "runtime", partial(onnx.requires, subject)
    elif subject.kind == GGUF:
        yield "structure", partial(gguf.structure, subject)
        yield "runtime", partial(claims.requires, subject)
    else:
        yield "structure", partial(safetensors.structure, subject)
    if subject.is_packed:
        yield "formats", partial(claims.formats, subject)
    yield "sizes", partial(claims.sizes, subject)
    yield "tokenizer", partial(claims.tokenizer, subject)


def _without_onnx() -> str:
    raise Skipped("onnx is not installed (pip install 'edgepack[onnx]')")


def same_bytes(subject: Subject) -> str:
    """Whether the same recipe would give the same bytes here."""
    known = subject.manifest.get("environment") or (subject.manifest.get("about") or {}).get(
        "environment"
    )
    if not known:
        raise Skipped("the folder does not say what it was made with")
    if lines := differences(known, environment()):
        raise Skipped(f"a build here may give others: {'; '.join(lines)}")
    return "a build here gives them: the same code, versions and kind of processor"


def _measured(subject: Subject, request: Request, *, whole: bool) -> Steps[list[Check]]:
    """The measurements again; not of damaged files."""
    name = "measured"
    if not whole or not subject.has_manifest:
        why = "the files are damaged" if subject.has_manifest else "it is no model"
        return [Check(name, "skipped", why)]
    steps = measure(subject, request.model, request.text)
    try:
        text = yield from steps
    except (Skipped, Failed, EdgepackError) as error:
        return carry_out(name, partial(_again, error))
    return [Check(name, "ok", text)]


def _again(error: Exception) -> str:
    raise error
