"""The structure of GGUF files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from edgepack.checkpoint.gguf_header import GgufHeader
from edgepack.core import plugins
from edgepack.export.gguf import FILE_TYPES
from edgepack.runtimes.gguf_check import check_adapter, check_model
from edgepack.targets.gguf import FACTORS
from edgepack.verify.checks import refuse
from edgepack.verify.subject import Subject

ALIGNMENT = "general.alignment"
FILE_TYPE = "general.file_type"


def structure(subject: Subject) -> str:
    """Header, positions, sizes and types of every tensor, what llama.cpp needs, and that nothing
    lies behind the last tensor."""
    base = subject.base.file
    header = check_model(base)
    tensors = len(header.tensors)
    refuse((*_behind(base, header), *_blocks(header)))
    refuse(_file_type(subject, header))
    factors = subject.base.factors
    if factors is not None:
        adapter = check_adapter(factors, header)
        refuse(_behind(factors, adapter))
        tensors += len(adapter.tensors)
    return f"{tensors} tensors of {base.name}{f' and {FACTORS}' if factors else ''}"


def alone(path: Path) -> int:
    """The same of an adapter whose base is not at hand; its tensors."""
    header = GgufHeader(path)
    refuse(_behind(path, header))
    return len(header.tensors)


def _behind(path: Path, header: GgufHeader) -> Iterator[str]:
    """What follows the last tensor is less than the alignment, and zero."""
    end = max((stored.start + stored.nbytes for stored in header.tensors.values()), default=0)
    alignment = int(header.metadata.get(ALIGNMENT, (32,))[0])
    with path.open("rb") as file:
        file.seek(end)
        rest = file.read(alignment)
    if len(rest) >= alignment or any(rest):
        count = path.stat().st_size - end
        yield f"{path.name} has {count} bytes behind its last tensor"


def _blocks(header: GgufHeader) -> Iterator[str]:
    """There are as many blocks as the metadata count."""
    family = header.metadata["general.architecture"][0]
    stated = header.metadata.get(f"{family}.block_count", (None,))[0]
    names = (name.split(".") for name in header.tensors if name.startswith("blk."))
    count = len({int(parts[1]) for parts in names if parts[1].isdigit()})
    if stated != count:
        yield f"{header.path.name} has {count} blocks, its metadata say {stated}"


def _file_type(subject: Subject, header: GgufHeader) -> Iterator[str]:
    """The kind of the file is the type of most matrices."""
    counts = Counter(fmt.Q for fmt in subject.formats.values())
    most = [name for name, count in counts.items() if count == max(counts.values())]
    known = {0 if name == "f32" else _number(name) for name in most}
    stated = header.metadata.get(FILE_TYPE, (None,))[0]
    if stated not in known:
        yield f"{header.path.name}: {FILE_TYPE} is {stated}, most matrices are {' or '.join(most)}"


def _number(name: str) -> int:
    return FILE_TYPES.get(plugins.find("formats", name).ggml_type, 0)
