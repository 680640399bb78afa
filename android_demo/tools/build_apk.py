"""Builds, signs and verifies the app, with Debian's packages and no Android SDK.

    python android_demo/tools/build_apk.py [--out FILE] [--variant VARIANT …] [--keystore FILE]

The same source gives the same bytes, but for the signature: the key is made on the spot, unless one
is given. Android Studio builds the same app from the same files.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import apk
import native_libs
from debian import Tools, run, tools

from edgepack.core.disk import root
from edgepack.errors import EdgepackError

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent
MAIN = PROJECT / "app/src/main"
PAGE = PROJECT.parent / "edgepack/demo/page"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Report:
    """What Android's own tools say of a signed APK."""

    file: Path
    bytes: int
    package: str
    min_sdk: int
    target_sdk: int
    permissions: tuple[str, ...]
    abis: tuple[str, ...]
    schemes: tuple[str, ...]
    """Versions of the signature that apksigner has verified."""

    def lines(self) -> list[str]:
        """For people."""
        return [
            f"{self.file}: {self.bytes / 1e6:.2f} MB",
            f"package      {self.package}, Android API {self.min_sdk} to {self.target_sdk}",
            f"machines     {', '.join(self.abis)}",
            f"permissions  {', '.join(self.permissions)}",
            f"signature    {', '.join(self.schemes)} verified",
        ]


def build(out: Path, variants: Sequence[str], keystore: Path | None, jobs: int, say: Say) -> Report:
    """Build the app into `out`; its unsigned form is beside it while that is made."""
    debian = tools(say)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        say("compiling")
        entries = link_resources(debian, work)
        entries["classes.dex"] = (dex(debian, work), False)
        for library in native_libs.put(work / "lib", variants, jobs, say):
            entries[str(library.relative_to(work))] = (library.read_bytes(), False)
        apk.write_zip(work / "unsigned.apk", entries)
        debian.zipalign("-c", "4", work / "unsigned.apk")
        say("signing")
        sign(debian, work / "unsigned.apk", out, keystore or _debug_key())
    return report(debian, out)


def link_resources(debian: Tools, work: Path) -> dict[str, tuple[bytes, bool]]:
    """Manifest, resources and the page; R.java is put into `work/gen`."""
    manifest = work / "AndroidManifest.xml"
    manifest.write_text(full_manifest(), encoding="utf-8")
    debian.aapt2("compile", "-o", work / "resources.zip", "--dir", MAIN / "res")
    debian.aapt2(
        *("link", "-o", work / "base.apk", "-I", debian.framework, "--manifest", manifest),
        *("--java", work / "gen", "-A", PAGE, "--warn-manifest-validation"),
        *("--min-sdk-version", facts()["minSdk"], "--target-sdk-version", facts()["targetSdk"]),
        *("--no-version-vectors", work / "resources.zip"),
    )
    with zipfile.ZipFile(work / "base.apk") as base:
        entries = {
            info.filename: (base.read(info), info.compress_type == zipfile.ZIP_STORED)
            for info in base.infolist()
        }
    name = "AndroidManifest.xml"
    entries[name] = (apk.set_special_use(entries[name][0]), False)
    return entries


def full_manifest() -> str:
    """The manifest as Gradle completes it, but for the type of the service (`set_special_use`)."""
    text = (MAIN / "AndroidManifest.xml").read_text(encoding="utf-8")
    own = facts()
    attributes = {
        "package": own["applicationId"],
        "android:versionCode": own["versionCode"],
        "android:versionName": own["versionName"],
    }
    more = "".join(f' {key}="{value}"' for key, value in attributes.items())
    text = text.replace("<manifest", f"<manifest{more}", 1)
    return text.replace('"specialUse"', '"dataSync"', 1)


def facts() -> Mapping[str, str]:
    """Numbers and names of app/build.gradle."""
    text = (PROJECT / "app/build.gradle").read_text(encoding="utf-8")
    return dict(re.findall(r"^ +(\w+) '?([\w.]+)'?$", text, re.MULTILINE))


def dex(debian: Tools, work: Path) -> bytes:
    """The app's classes."""
    sources = sorted([*(MAIN / "java").rglob("*.java"), *(work / "gen").rglob("*.java")])
    stubs = sorted((HERE / "stubs").rglob("*.java"))
    classes, others = work / "classes", work / "stubs"
    java = ["javac", "-source", "8", "-target", "8", "-encoding", "UTF-8", "-g:source,lines"]
    java += ["-Xlint:all", "-Xlint:-options", "-Werror", "-bootclasspath", str(debian.android_jar)]
    run([*java, "-d", others, *stubs])
    run([*java, "-cp", others, "-d", classes, *sources])
    main = ["java", "-Xmx512m", "-cp", debian.dx, "com.android.dx.command.Main"]
    least = f"--min-sdk-version={facts()['minSdk']}"
    run([*main, "--dex", least, f"--output={work / 'classes.dex'}", classes])
    return (work / "classes.dex").read_bytes()


def _debug_key() -> Path:
    """A key of this machine, for tests: its password is known to all."""
    key = (root() / "android" / "debug.keystore").resolve()
    if not key.is_file():
        key.parent.mkdir(parents=True, exist_ok=True)
        words = "-storepass android -keypass android -alias debug -keyalg RSA -keysize 2048"
        about = ["-validity", "10000", "-dname", "CN=edgepack debug"]
        run(["keytool", "-genkeypair", "-keystore", key, *words.split(), *about])
    return key


def sign(debian: Tools, unsigned: Path, out: Path, keystore: Path) -> None:
    """Sign by the schemes v2 and v3. The password of a keystore of one's own is asked for."""
    out.parent.mkdir(parents=True, exist_ok=True)
    known = keystore.name == "debug.keystore"
    password = "pass:android" if known else "env:EDGEPACK_KEYSTORE_PASSWORD"
    debian.apksigner(
        *("sign", "--ks", keystore, "--ks-pass", password, "--v1-signing-enabled", "false"),
        *("--min-sdk-version", facts()["minSdk"], "--out", out, unsigned),
    )
    out.with_name(out.name + ".idsig").unlink(missing_ok=True)


def report(debian: Tools, file: Path) -> Report:
    """Verify the signature, and read off what the app may do."""
    verified = debian.apksigner("verify", "--verbose", "--min-sdk-version", facts()["minSdk"], file)
    badging = debian.aapt2("dump", "badging", file)
    return Report(
        file=file,
        bytes=file.stat().st_size,
        package=_found(r"^package: name='(.+?)'", badging),
        min_sdk=int(_found(r"^sdkVersion:'(\d+)'", badging)),
        target_sdk=int(_found(r"^targetSdkVersion:'(\d+)'", badging)),
        permissions=tuple(re.findall(r"^uses-permission: name='(.+?)'", badging, re.MULTILINE)),
        abis=tuple(re.findall(r"'(.+?)'", _found(r"^native-code: (.*)$", badging))),
        schemes=tuple(re.findall(r"^Verified using (v\d+) scheme.*: true$", verified, re.M)),
    )


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text, re.MULTILINE)
    if match is None:
        raise EdgepackError(f"the APK does not say {pattern}")
    return match.group(1)


def main() -> int:
    """Build, and print the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=PROJECT / "edgepack.apk")
    parser.add_argument(
        "--variant",
        action="append",
        choices=list(native_libs.NAMES),
        help=f"programs for these CPUs (default: {', '.join(native_libs.PHONES)})",
    )
    parser.add_argument("--keystore", type=Path, help="sign with this key, not a debug key")
    parser.add_argument("--jobs", type=int, default=0, help="compilers at once (default: cores)")
    arguments = parser.parse_args()
    if not shutil.which("javac"):
        print("error: no javac\nhint: apt-get install openjdk-17-jdk-headless", file=sys.stderr)
        return 1
    try:
        found = build(
            arguments.out,
            arguments.variant or native_libs.PHONES,
            arguments.keystore,
            arguments.jobs,
            lambda text: print(text, file=sys.stderr),
        )
    except EdgepackError as error:
        print(f"error: {error}\nhint: {error.hint}", file=sys.stderr)
        return error.exit_code
    print("\n".join(found.lines()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
