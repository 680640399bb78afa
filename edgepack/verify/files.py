"""The files of a folder against those that it describes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from edgepack.core import adapters
from edgepack.core.adapters import FOLDER
from edgepack.core.artifact import SOFTWARE
from edgepack.core.untrusted import read_json
from edgepack.errors import EdgepackError
from edgepack.output.environment import code
from edgepack.output.provenance import RECIPE, without_none
from edgepack.publish.card import NAME as CARD
from edgepack.publish.folder import Described
from edgepack.recipe import plain_yaml
from edgepack.report.page import render
from edgepack.verify.checks import Skipped, refuse
from edgepack.verify.subject import Subject

REPORT = "report.md"
OF_THE_HUB = (CARD, ".gitattributes")
"""Files that `edgepack push` and the hub add …"""
OF_TRAINING = ("finetune.json", "loss.png", "report.md")
"""What `edgepack finetune` says of a run in an adapter's folder: it has times in it, and
adapter.json describes the files that a runtime loads."""
OF_CLIENTS = (".cache", ".git")
"""… and folders of those that download from it."""


def hashes(subject: Subject) -> str:
    """Every file is there with the digest that was noted, those of adapters included."""
    refuse(f"{name} {problem}" for name, problem in _problems(subject))
    count = sum(len(one.files) for one in _described(subject))
    return f"sha256 of {count} files"


def _problems(subject: Subject) -> Iterator[tuple[str, str]]:
    for one in _described(subject):
        place = one.folder.relative_to(subject.folder).as_posix()
        for name, problem in one.problems():
            yield name if place == "." else f"{place}/{name}", problem


def _described(subject: Subject) -> Iterator[Described]:
    """The folder, and adapters in it that describe themselves."""
    yield subject.described
    for path in _adapters(subject):
        about = adapters.read_about(path).model_dump()
        yield Described(path, about, adapters.ABOUT, about["files"], "")


def _adapters(subject: Subject) -> Iterator[Path]:
    if not subject.has_manifest:
        return
    listed = {PurePosixPath(name).parent for name in subject.described.files}
    for found in adapters.listed(subject.folder):
        inside = PurePosixPath(FOLDER) / found.name
        if found.about is not None and inside not in listed:
            yield found.folder


def foreign(subject: Subject) -> str:
    """No file is there that nothing describes."""
    known = {
        (one.folder / name).relative_to(subject.folder).as_posix()
        for one in _described(subject)
        for name in (*one.files, one.name, *(OF_TRAINING if one.name == adapters.ABOUT else ()))
    }
    others = [name for name in subject.described.others() if name not in known]
    added = [name for name in others if name in OF_THE_HUB]
    others = [n for n in others if n not in added and PurePosixPath(n).parts[0] not in OF_CLIENTS]
    refuse(f"{name} is no file that edgepack wrote" for name in others)
    return f"besides {' and '.join(added)}, of the hub" if added else "none"


def pages(subject: Subject) -> str:
    """report.md and recipe.yaml say what manifest.json says."""
    manifest, files = subject.manifest, subject.described.files
    here = (manifest.get("environment") or {}).get("code") == code()
    compared = []
    if REPORT in files and here:
        text = (subject.folder / REPORT).read_text(encoding="utf-8")
        refuse([f"{REPORT} says something else than manifest.json"] * (render(manifest) != text))
        compared.append(REPORT)
    if RECIPE in files and not manifest["merged"]:
        text = (subject.folder / RECIPE).read_text(encoding="utf-8")
        found = plain_yaml.parse(text, RECIPE)
        refuse(_otherwise(found, without_none(manifest["recipe"])))
        compared.append(RECIPE)
    if not compared:
        raise Skipped("they are of another version of edgepack")
    return f"{' and '.join(compared)} and manifest.json say the same"


def _otherwise(recipe: object, stated: dict[str, object]) -> list[str]:
    """Sections of a recipe that the manifest has otherwise. What a size chooses is in the manifest
    alone."""
    found = recipe if isinstance(recipe, dict) else {}
    lines = []
    for name, section in found.items():
        known = stated.get(name)
        if isinstance(section, dict) and isinstance(known, dict):
            known = {key: known.get(key) for key in section}
        if section != known:
            lines.append(f"{RECIPE}: {name} is not what manifest.json says")
    return lines


def bill(subject: Subject) -> str:
    """The bill of software can be read, and names the edgepack that wrote the manifest."""
    path = subject.folder / SOFTWARE
    if SOFTWARE not in subject.described.files:
        raise Skipped("an older version of edgepack wrote none")
    try:
        found = read_json(path)
        ours = found["metadata"]["tools"]["components"][0]
        version = ours.get("version")
        count, kind = len(found["components"]), (found["bomFormat"], found["specVersion"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise EdgepackError(f"{SOFTWARE} is no bill of software", hint="build it again") from None
    refuse([f"{SOFTWARE} is of edgepack {version}"] * (version != subject.manifest["edgepack"]))
    return f"{kind[0]} {kind[1]}, {count} components"
