"""The app as `tools/build_apk.py` builds it, judged by Android's own tools and by its bytes."""

from __future__ import annotations

import importlib
import re
import shutil
import struct
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edgepack.errors import EdgepackError
from edgepack.native.build import PROGRAMS
from edgepack.native.variants import VARIANTS
from tests.android.host import JAVA, PROJECT
from tests.android.test_project import ALLOWED
from tests.support.phone import tools

MOST_BYTES = 12_000_000
PAGE = 0x4000
"""Of phones with large pages: what is loaded must begin at multiples of it."""


@contextmanager
def the_tools() -> Iterator[None]:
    """The folder of the builder's modules on the path."""
    folder = str(PROJECT / "tools")
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(the report of a built app, the same of a second build)."""
    if not shutil.which("javac"):
        pytest.skip("needs javac")
    found = []
    with pytest.MonkeyPatch.context() as patch, the_tools():
        patch.setenv("EDGEPACK_CACHE", str(tools() / "cache"))
        build_apk = importlib.import_module("build_apk")
        try:
            build_apk.tools(lambda _: None)
        except EdgepackError as error:
            pytest.skip(f"needs Debian's packages of Android's tools: {error.message}")
        phones = importlib.import_module("native_libs").PHONES
        for number in range(2):
            patch.setenv("TZ", ("UTC", "Asia/Tokyo")[number])
            patch.setenv("LC_ALL", ("C.UTF-8", "C")[number])
            out = tmp_path_factory.mktemp(f"build{number}") / "edgepack.apk"
            found.append(build_apk.build(out, phones, None, 1, lambda _: None))
    return found


@pytest.fixture(scope="module")
def report(built):
    return built[0]


@pytest.fixture(scope="module")
def entries(report):
    with zipfile.ZipFile(report.file) as apk:
        return {name: apk.read(name) for name in apk.namelist()}


def test_the_signature_is_verified(report):
    assert report.schemes == ("v2", "v3")


def test_no_internet_and_nothing_else_that_is_not_needed(report):
    assert "android.permission.INTERNET" not in report.permissions
    assert set(report.permissions) == {f"android.permission.{name}" for name in ALLOWED}


def test_it_is_small(report):
    print(f"{report.bytes / 1e6:.2f} MB")
    assert report.bytes == report.file.stat().st_size < MOST_BYTES


def test_it_is_what_gradle_says(report):
    assert (report.package, report.min_sdk, report.target_sdk) == ("org.edgepack.demo", 26, 35)
    assert report.abis == ("arm64-v8a",)


def test_programs_for_old_and_new_processors(entries):
    names = {name.rpartition("/")[2] for name in entries if name.startswith("lib/arm64-v8a/")}
    every = {f"libedgepack-{program}{more}.so" for program in PROGRAMS for more in ("", "-dotprod")}
    assert names == every - {"libedgepack-bench.so"}


def test_programs_run_on_phones_with_large_pages(entries):
    for name, content in entries.items():
        if name.startswith("lib/"):
            assert content[:5] == b"\x7fELF\2", name
            assert struct.unpack_from("<H", content, 18)[0] == 183, name  # aarch64
            assert all(align % PAGE == 0 for align in loaded(content)), name


def loaded(elf: bytes) -> list[int]:
    """Alignments of what is loaded of a 64-bit ELF file (its man page)."""
    start, size, count = (
        struct.unpack_from(f, elf, at)[0] for f, at in (("<Q", 32), ("<H", 54), ("<H", 56))
    )
    rows = [start + size * number for number in range(count)]
    found = [
        struct.unpack_from("<Q", elf, at + 48)[0]
        for at in rows
        if struct.unpack_from("<I", elf, at)[0] == 1
    ]
    assert found
    return found


def test_the_page_is_in_it_as_it_is(entries):
    page = PROJECT.parent / "edgepack/demo/page"
    files = {
        f"assets/{path.relative_to(page)}": path.read_bytes()
        for path in page.rglob("*")
        if path.is_file()
    }
    assert "assets/index.html" in files
    assert {name: entries.get(name) for name in files} == files


def test_every_class_is_in_it_and_no_stub(entries):
    names = classes(entries["classes.dex"])
    sources = {
        f"L{path.relative_to(JAVA.parents[1]).with_suffix('')};" for path in JAVA.rglob("*.java")
    }
    assert sources <= names
    assert all(name.startswith("Lorg/edgepack/") for name in names)


def classes(dex: bytes) -> set[str]:
    """Names of the classes that are defined in a .dex file (Android's document of the format)."""
    assert dex[:4] == b"dex\n"
    strings, types, definitions = (struct.unpack_from("<II", dex, at) for at in (56, 64, 96))

    def text(index: int) -> str:
        at = struct.unpack_from("<I", dex, strings[1] + 4 * index)[0] + 1  # after its length
        return dex[at : dex.index(b"\0", at)].decode()

    return {
        text(struct.unpack_from("<I", dex, types[1] + 4 * kind)[0])
        for (kind,) in (
            struct.unpack_from("<I", dex, definitions[1] + 32 * number)
            for number in range(definitions[0])
        )
    }


def test_the_manifest_that_android_reads(report):
    with pytest.MonkeyPatch.context() as patch, the_tools():
        patch.setenv("EDGEPACK_CACHE", str(tools() / "cache"))
        debian = importlib.import_module("debian").tools(lambda _: None)
        tree = debian.aapt2("dump", "xmltree", "--file", "AndroidManifest.xml", report.file)
    found = dict(re.findall(r"A: \S*?(\w+)\(0x\w+\)=(\S+)", tree))
    assert found["extractNativeLibs"] == "true"
    assert found["allowBackup"] == "false"
    assert int(found["foregroundServiceType"], 16) == 0x40000000  # specialUse, API 34
    assert len(re.findall(r"exported\(0x\w+\)=true", tree)) == 1


def test_the_same_source_gives_the_same_bytes(built):
    first, second = (content(report.file) for report in built)
    assert first == second


def content(file: Path) -> bytes:
    """An APK without its signature: that lies before the list of entries (APK Signature Scheme v2),
    whose place is said at the end."""
    data = file.read_bytes()
    end = data.rindex(b"PK\5\6")
    directory = struct.unpack_from("<I", data, end + 16)[0]
    size = struct.unpack_from("<Q", data, directory - 24)[0]
    assert data[directory - 16 : directory] == b"APK Sig Block 42"
    begin = directory - size - 8
    tail = bytearray(data[directory:])
    struct.pack_into("<I", tail, end - directory + 16, begin)
    return data[:begin] + bytes(tail)


def test_variants_have_names():
    with the_tools():
        names = importlib.import_module("native_libs").NAMES
    assert set(names) == set(VARIANTS)
