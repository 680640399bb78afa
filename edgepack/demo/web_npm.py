"""Programs of others that a page in a browser runs: from npm, pinned, never fetched at run time.

`npm/package-lock.json` pins the packages with npm's digests, `npm/files.json` each file that is
taken from them with its sha256.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

from edgepack.core.disk import root, sha256
from edgepack.core.untrusted import read_json, shorten
from edgepack.errors import EdgepackError

HERE = Path(__file__).with_name("npm")
PACKAGE, LOCK, FILES = "package.json", "package-lock.json", "files.json"
MODULES = "node_modules"
SECONDS = 600


def packages() -> dict[str, str]:
    """Package → version."""
    found: dict[str, str] = json.loads((HERE / PACKAGE).read_text(encoding="utf-8"))["dependencies"]
    return found


def npm_line() -> str:
    """What a person types to get them."""
    return f"npm install {_pinned()}"


def _pinned() -> str:
    return " ".join(f"{name}@{version}" for name, version in packages().items())


def copy_runtimes(out: Path, modules: Path | None) -> None:
    """Copy the programs and their licences into the folder `out`.

    `modules` is a ``node_modules`` folder, or the one that it is in; None: npm fetches them once,
    and they stay in edgepack's cache. Raises `EdgepackError` for packages that are missing or of
    another version, with the line that gets them.
    """
    source = _found(modules) if modules else _fetched()
    wanted = json.loads((HERE / FILES).read_text(encoding="utf-8"))
    for package, version in packages().items():
        _check_version(source / package, package, version)
    for name, (package, path, digest) in wanted.items():
        _copy(source / package / path, out / name, digest)
    for licence in (HERE / "licences").iterdir():
        shutil.copyfile(licence, out / "ort" / "LICENSE")
    shutil.copyfile(out / "wllama" / "LICENCE", out / "wllama-compat" / "LICENCE")


def _copy(source: Path, out: Path, digest: str) -> None:
    if not source.is_file() or sha256(source) != digest:
        what = "is not the file that npm has" if source.is_file() else "is missing"
        raise EdgepackError(f"{shorten(str(source), 120)}: {what}", hint=f"run {npm_line()}")
    out.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, out)


def _check_version(folder: Path, package: str, version: str) -> None:
    try:
        found = read_json(folder / PACKAGE)["version"]
    except (OSError, KeyError, TypeError):
        found = None
    if found != version:
        what = f"is version {found}, not {version}" if found else "is missing"
        raise EdgepackError(
            f"{shorten(str(folder.parent), 100)}: {package} {what}", hint=f"run {npm_line()}"
        )


def _found(modules: Path) -> Path:
    inner = modules / MODULES
    place = inner if inner.is_dir() else modules
    if not place.is_dir():
        raise EdgepackError(
            f"{shorten(str(modules), 120)}: is no folder", hint=f"run {npm_line()} in a folder"
        )
    return place


def _fetched() -> Path:
    """The packages in the cache, where npm has put them."""
    key = hashlib.sha256((HERE / LOCK).read_bytes()).hexdigest()[:16]
    place = root() / "npm" / key
    if (place / MODULES).is_dir():
        return place / MODULES
    npm = shutil.which("npm")
    if npm is None:
        raise EdgepackError(
            "a page in a browser needs programs that npm has, and there is no npm here",
            hint=f"run {npm_line()} elsewhere, and name its folder: --node-modules DIR",
        )
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as temporary:
        work = Path(temporary) / key
        work.mkdir()
        for name in (PACKAGE, LOCK):
            shutil.copyfile(HERE / name, work / name)
        _install(npm, work)
        if not place.exists():
            work.rename(place)
    return place / MODULES


def _install(npm: str, folder: Path) -> None:
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier"]
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EdgepackError(f"npm does not run: {error}", hint=f"run {npm_line()}") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = shorten(lines[0], 150) if lines else f"it ended with {done.returncode}"
        raise EdgepackError(
            f"npm cannot fetch what the page needs: {reason}",
            hint=f"run {npm_line()} elsewhere, and name its folder: --node-modules DIR",
        )


if __name__ == "__main__":
    print(_pinned())  # for the Makefile
