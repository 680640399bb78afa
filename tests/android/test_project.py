"""The Android project as text: what Gradle, Android's tools and Java agree on."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections import Counter

import pytest

from edgepack.core import plugins
from edgepack.finetune import general
from edgepack.formats._ggml import GGML_QUANT_SIZES
from edgepack.native.build import PROGRAMS
from edgepack.native.variants import VARIANTS
from tests.android.host import JAVA, PROJECT

MAIN = PROJECT / "app/src/main"
ANDROID = "{http://schemas.android.com/apk/res/android}"
ALLOWED = {
    "FOREGROUND_SERVICE",
    "FOREGROUND_SERVICE_SPECIAL_USE",
    "POST_NOTIFICATIONS",
    "WAKE_LOCK",
}
"""None of them opens a connection, reads files of others, or tells where the phone is."""


@pytest.fixture(scope="module")
def manifest():
    return ET.parse(MAIN / "AndroidManifest.xml").getroot()


def java(name):
    return (JAVA / name).read_text()


def test_permissions(manifest):
    names = {one.get(f"{ANDROID}name") for one in manifest.iter("uses-permission")}
    assert names == {f"android.permission.{name}" for name in ALLOWED}


def test_only_the_activity_is_open_to_other_apps(manifest):
    parts = [
        one
        for kind in ("activity", "service", "receiver", "provider")
        for one in manifest.iter(kind)
    ]
    exported = {one.get(f"{ANDROID}name"): one.get(f"{ANDROID}exported") for one in parts}
    assert exported == {
        "org.edgepack.demo.MainActivity": "true",
        "org.edgepack.demo.TuneService": "false",
    }


def test_nothing_is_backed_up(manifest):
    application = manifest.find("application")
    assert application.get(f"{ANDROID}allowBackup") == "false"
    assert application.get(f"{ANDROID}dataExtractionRules") == "@xml/data_extraction"
    rules = ET.parse(MAIN / "res/xml/data_extraction.xml").getroot()
    for part in ("cloud-backup", "device-transfer"):
        excluded = {one.get("domain") for one in rules.find(part)}
        assert excluded == {"root", "file", "database", "sharedpref", "external"}
        assert {one.tag for one in rules.find(part)} == {"exclude"}


def test_programs_are_unpacked(manifest):
    assert manifest.find("application").get(f"{ANDROID}extractNativeLibs") == "true"
    assert "useLegacyPackaging true" in (PROJECT / "app/build.gradle").read_text()


def test_classes_of_the_manifest_are_there(manifest):
    for one in manifest.iter():
        name = one.get(f"{ANDROID}name", "")
        if one.tag in ("application", "activity", "service"):
            assert (JAVA.parent.parent / f"{name.replace('.', '/')}.java").is_file()


def test_gradle_and_the_project_agree():
    gradle = (PROJECT / "app/build.gradle").read_text()
    found = dict(re.findall(r"^ +(\w+) '?([\w.]+)'?$", gradle, re.MULTILINE))
    assert found["namespace"] == found["applicationId"] == "org.edgepack.demo"
    assert (found["minSdk"], found["targetSdk"], found["compileSdk"]) == ("26", "35", "35")
    assert f'VERSION = "{found["versionName"]}"' in java("host/Host.java")
    assert "../../edgepack/demo/page" in gradle
    assert (PROJECT.parent / "edgepack/demo/page/index.html").is_file()


def test_a_plain_jvm_runs_the_host():
    for file in (JAVA / "host").glob("*.java"):
        text = file.read_text()
        assert "import android" not in text, file.name
        assert "import org.json" not in text, file.name


def test_no_lambda_and_no_newer_class_that_debians_android_lacks():
    for file in JAVA.rglob("*.java"):
        text = re.sub(r'"(\\.|[^"\\])*"|//.*|/\*.*?\*/', "", file.read_text(), flags=re.DOTALL)
        assert not re.search(r"->|::|java\.nio\.file|java\.util\.(function|stream)", text), file


@pytest.mark.parametrize("language", ["de"])
def test_strings_are_in_every_language(language):
    def strings(folder):
        root = ET.parse(MAIN / "res" / folder / "strings.xml").getroot()
        return {
            one.get("name"): [
                re.findall(r"%\d\$[sd]", "".join(part.itertext())) for part in (list(one) or [one])
            ]
            for one in root
            if one.get("translatable") != "false"
        }

    assert strings(f"values-{language}") == strings("values")


def test_day_and_night_have_the_same_values():
    def names(folder):
        return {one.get("name") for one in ET.parse(MAIN / "res" / folder / "themes.xml").getroot()}

    assert names("values-night") == names("values") - {"icon_back"}


# ---------------------------------------------------------------------------- same as elsewhere


def test_processors_are_those_of_the_variants():
    rows = re.findall(r'^ +\{"([^}]*)"\},$', java("host/Cpu.java"), re.MULTILINE)
    known = {suffix: tuple(features) for suffix, *features in (row.split('", "') for row in rows)}
    for name, variant in VARIANTS.items():
        suffix = name.removeprefix(variant.machine)
        if suffix:
            assert known[suffix] == variant.features
    assert set(known) == {name.removeprefix(v.machine) for name, v in VARIANTS.items()}


def test_types_are_ggmls():
    text = java("host/GgufHeader.java").split("TYPES = ")[1].split(";")[0]
    rows = "".join(re.findall(r'"(.*?)"', text)).split(", ")
    found = {
        int(number): (name, int(block), int(size))
        for number, name, block, size in (row.split() for row in rows)
    }
    for kind, (block, size) in GGML_QUANT_SIZES.items():
        name = kind.name.lower()
        if name[0] in "if" and name[1:].isdigit() and name not in ("f16", "f32"):
            continue  # of indices, not weights
        if name in ("q8_1", "q8_k"):
            continue  # of activations
        if name in plugins.names("formats") and not plugins.find("formats", name).in_ggml:
            continue  # proposed
        assert found[kind.value] == (name, block, size)
    assert Counter(name for name, *_ in found.values()).most_common(1)[0][1] == 1


def test_replay_is_as_large_as_elsewhere():
    text = java("host/Trainings.java")
    assert f"REPLAYED = {general.REPLAYED}, LENGTH = {general.LENGTH + 1};" in text


def test_cmake_makes_every_program():
    text = (MAIN / "cpp/CMakeLists.txt").read_text()
    assert f"foreach(program {' '.join(('chat', 'tune', 'bench'))})" in text
    assert set(PROGRAMS) == {"chat", "tune", "bench"}
