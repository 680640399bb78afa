"""Android's tools as Debian builds them, in a folder of the cache: nothing is installed.

aapt2 and apksigner are Debian 12's. The dexer (dx) and an android.jar are in Debian 11 alone; that
android.jar is of API 23, so newer calls go by name (`Newer.java`) or a stub (`tools/stubs`).
Resources are linked against Debian 13's framework, which knows `dataExtractionRules`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgepack.core.disk import lock_of, locked, root, sha256
from edgepack.errors import EdgepackError

SUITES = ("bullseye", "bookworm", "trixie")
KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
MADE: Mapping[str, tuple[str, str]] = {
    "dalvik-exchange": (
        "10.0.0+r36-1",
        "8fc128db7c27253d963eb9b33de79b197162a4749d2ba69019b2fd0664cbd7fe",
    ),
    "libandroid-23-java": (
        "6.0.1+r72-6",
        "8af1b6df556971dda0a6da3536ea526a838e0c363afcdd454213d8bce94793e3",
    ),
    "android-framework-res": (
        "1:14~beta1-3",
        "2813eeaa722b1fc67d66701ddb6111d4b74f84df20974c220da04b0ef5f4c1c8",
    ),
    "aapt": (
        "1:10.0.0+r36-10",
        "a4790dd07923a45ba17982d257abbce3f8050e8b30b0952545255502a5d1f505",
    ),
    "apksigner": (
        "31.0.2-1",
        "6ded96d6156f8b0bc1355e87b5fad8e6ebfcf8a694dedd9987768b37a41878d4",
    ),
    "libapksig-java": (
        "31.0.2-1",
        "cfb1babb843de0c7490c4554dca31187ceb326ea7f53c9cd77e9ce46342cba59",
    ),
    "zipalign": (
        "1:10.0.0+r36-1",
        "522d9efffbd2602a508530e58c8e2f21b1fb2598c7986350e41906d439e4758c",
    ),
}
"""Packages that make the app's bytes, or judge them: version and sha256."""
NEEDED: Mapping[str, str] = {
    "android-libaapt": "1:10.0.0+r36-10",
    "android-libandroidfw": "1:10.0.0+r36-10",
    "android-libbacktrace": "1:29.0.6-28",
    "android-libbase": "1:29.0.6-28",
    "android-libcutils": "1:29.0.6-28",
    "android-liblog": "1:29.0.6-28",
    "android-libutils": "1:29.0.6-28",
    "android-libziparchive": "1:29.0.6-28",
    **dict.fromkeys(("libzopfli1", "libprotobuf-lite32", "libpng16-16", "libexpat1"), ""),
    "p7zip-full": "",
}
"""Their libraries. Those without a version get fixes; apt checks Debian's signature of each."""


@dataclass(frozen=True)
class Tools:
    """The tools, unpacked in `folder`."""

    folder: Path

    @property
    def dx(self) -> Path:
        """The dexer: a jar."""
        return self.folder / "usr/share/java/com.android.dx.jar"

    @property
    def android_jar(self) -> Path:
        """Android's classes, without code."""
        return self.folder / "usr/share/java/com.android.android-23.jar"

    @property
    def framework(self) -> Path:
        """Android's resources."""
        return self.folder / "usr/share/android-framework-res/framework-res.apk"

    def aapt2(self, *words: str | Path) -> str:
        """Run aapt2, and return what it prints."""
        return self._native("usr/lib/android-sdk/build-tools/debian/aapt2", words)

    def zipalign(self, *words: str | Path) -> str:
        """Run zipalign, and return what it prints."""
        return self._native("usr/bin/zipalign", words)

    def apksigner(self, *words: str | Path) -> str:
        """Run apksigner, and return what it prints."""
        java = self.folder / "usr/share/java"
        path = f"{java / 'apksigner.jar'}:{java / 'apksig.jar'}"
        return run(["java", "-cp", path, "com.android.apksigner.ApkSignerTool", *words])

    def _native(self, program: str, words: Sequence[str | Path]) -> str:
        libraries = self.folder / "usr/lib"
        places = (
            libraries / "x86_64-linux-gnu/android",
            libraries / "x86_64-linux-gnu",
            libraries / "p7zip",
            libraries,
        )
        path = ":".join(map(str, places))
        return run([self.folder / program, *words], {"LD_LIBRARY_PATH": path})


def tools(say: Callable[[str], None]) -> Tools:
    """The tools; downloaded the first time (50 MB)."""
    folder = (root() / "android" / "debian").resolve()
    if not folder.is_dir():
        with locked(lock_of("android")) as mine:
            if not mine:
                raise EdgepackError("another process downloads the tools", hint="wait for its end")
            say("downloading Android's tools from Debian")
            _download(folder)
    return Tools(folder)


def _download(folder: Path) -> None:
    partial = folder.with_name("debian.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for name in ("lists/partial", "cache/archives/partial", "parts", "packages", "root"):
        (partial / name).mkdir(parents=True)
    base = _mirror()
    lines = (f"deb [arch=amd64 signed-by={KEYS}] {base} {suite} main\n" for suite in SUITES)
    (partial / "sources.list").write_text("".join(lines), encoding="utf-8")
    apt = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root"]
    for key, place in {
        "Dir::Etc::sourcelist": "sources.list",
        "Dir::Etc::sourceparts": "parts",
        "Dir::State::lists": "lists",
        "Dir::Cache": "cache",
    }.items():
        apt += ["-o", f"{key}={partial / place}"]
    run([*apt, "update"])
    versions = {name: version for name, (version, _) in MADE.items()} | dict(NEEDED)
    wanted = [
        f"{name}={version}" if version else f"{name}/bookworm" for name, version in versions.items()
    ]
    run([*apt, "download", *wanted], folder=partial / "packages")
    for package in sorted((partial / "packages").iterdir()):
        name = package.name.partition("_")[0]
        if name in MADE and sha256(package) != MADE[name][1]:
            raise EdgepackError(f"{package.name} has other bytes than it should have")
        run(["dpkg", "-x", package, partial / "root"])
    (partial / "root").rename(folder)
    shutil.rmtree(partial)


def _mirror() -> str:
    """Where this system has its packages from."""
    folder = Path("/etc/apt")
    for file in (folder / "sources.list.d/debian.sources", folder / "sources.list"):
        text = file.read_text(encoding="utf-8") if file.is_file() else ""
        found = re.search(r"^(?:URIs: *|deb (?:\[.*?\] *)?)(https?://\S+)", text, re.MULTILINE)
        if found:
            return found.group(1)
    raise EdgepackError(
        "the app can be built on Debian 12 alone (there are no sources of its packages here)",
        hint="or open android_demo in Android Studio",
    )


def run(
    command: Sequence[str | Path],
    more: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> str:
    """Run a program, and return what it prints; its failure is one line, and its own words."""
    words = [str(word) for word in command]
    if shutil.which(words[0]) is None:
        raise EdgepackError(
            f"there is no {words[0]} here", hint="apt-get install openjdk-17-jdk-headless"
        )
    done = subprocess.run(
        words,
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | dict(more or {}),
        check=False,
    )
    if done.returncode:
        raise EdgepackError(
            f"{Path(words[0]).name} ended with {done.returncode}",
            hint=(done.stderr or done.stdout).strip()[-2000:],
        )
    return done.stdout
