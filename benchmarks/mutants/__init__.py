"""The breaks of `benchmarks.mutations`, one file a room of edgepack, and one for keys."""

from __future__ import annotations

from benchmarks.mutants import (
    adapters,
    allocate,
    calibration,
    decompose,
    devices,
    finetune,
    finetune_graph,
    formats,
    keys,
    metrics,
    recover,
    serving,
    slicing,
)
from benchmarks.mutants._base import Groups

ROOMS = (
    *(decompose, allocate, calibration, recover, finetune, finetune_graph),
    *(metrics, formats, slicing, adapters, devices, serving, keys),
)
GROUPS: Groups = {place: breaks for room in ROOMS for place, breaks in room.GROUPS.items()}
