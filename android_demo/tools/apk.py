"""What an APK is made of: a manifest in Android's binary XML, and a zip whose bytes follow from its
entries alone."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

RESOURCE_MAP, START_ELEMENT = 0x0180, 0x0102
SERVICE_TYPE = 0x01010599
"""The attribute `foregroundServiceType` (API 29)."""
DATA_SYNC, SPECIAL_USE = 0x1, 0x40000000
"""Its values; the second is of API 34, which Debian's resources do not have."""
TIME = (1980, 1, 1, 0, 0, 0)
ALIGNMENT_EXTRA = 0xD935
"""The extra field by which Android's tools align what is stored."""


def set_special_use(manifest: bytes) -> bytes:
    """The binary manifest with the service's type `specialUse` in place of `dataSync`: what a newer
    aapt2 would have written (ResXMLTree in Android's ResourceTypes.h)."""
    data = bytearray(manifest)
    ids: tuple[int, ...] = ()
    changed = 0
    at = 8
    while at < len(data):
        kind, header, size = struct.unpack_from("<HHI", data, at)
        if kind == RESOURCE_MAP:
            ids = struct.unpack_from(f"<{(size - header) // 4}I", data, at + header)
        if kind == START_ELEMENT:
            start, width, count = struct.unpack_from("<HHH", data, at + header + 8)
            for number in range(count):
                place = at + header + start + number * width
                name = struct.unpack_from("<I", data, place + 4)[0]
                value = struct.unpack_from("<I", data, place + 16)[0]
                if name < len(ids) and ids[name] == SERVICE_TYPE and value == DATA_SYNC:
                    struct.pack_into("<I", data, place + 16, SPECIAL_USE)
                    changed += 1
        at += size
    if changed != 1:
        raise ValueError(f"{changed} services of type dataSync in the manifest, not one")
    return bytes(data)


def write_zip(path: Path, entries: Mapping[str, tuple[bytes, bool]]) -> None:
    """Write entries, name → content and whether it is stored as it is. The manifest comes first,
    the others in the order of their names; stored ones begin at multiples of four."""
    with zipfile.ZipFile(path, "w") as out:
        for name in sorted(entries, key=lambda name: (name != "AndroidManifest.xml", name)):
            content, stored = entries[name]
            info = zipfile.ZipInfo(name, TIME)
            info.create_system, info.external_attr = 0, 0
            info.compress_type = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
            if stored:
                assert out.fp is not None
                begin = out.fp.tell() + 30 + len(name.encode()) + 6
                padding = -begin % 4
                info.extra = struct.pack("<HHH", ALIGNMENT_EXTRA, 2 + padding, 4) + bytes(padding)
            out.writestr(info, content, compresslevel=9)
