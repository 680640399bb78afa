"""Matrices of a packed model as float32, decoded one at a time into memory that is used again."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import numpy as np
import torch
from gguf import GGMLQuantizationType
from torch import Tensor

from edgepack.checkpoint import Checkpoint, gguf_rows
from edgepack.checkpoint.gguf_file import GgufCheckpoint
from edgepack.core.accelerator import free_memory
from edgepack.core.weights import QuantizedTensor


def reader_for(checkpoint: Checkpoint, device: torch.device) -> Reader:
    """A reader whose matrices are on a device."""
    return Reader(checkpoint) if device.type == "cpu" else DeviceReader(checkpoint, device)


class Reader:
    """Reads `checkpoint`'s matrices. What it returns is valid until the next call.

    GGUF blocks are decoded by ggml where llama-cpp-python is installed: fast enough
    that little is gained by keeping a float copy.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self._room = torch.empty(0)
        self._tables: dict[str, QuantizedTensor] = {}
        self._orders: dict[str, Tensor | None] = {}
        self._threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(self._threads)
        self._has_ggml = find_spec("llama_cpp") is not None

    def matrix(self, name: str) -> Tensor:
        """A whole matrix ``[out, in]``, with Hugging Face's order of rows."""
        rows, checkpoint = range(self.checkpoint.specs[name].shape[0]), self.checkpoint
        if not isinstance(checkpoint, GgufCheckpoint):
            return self.rows(name, rows)
        data, kind = checkpoint.stored_rows(name, rows)
        order = self._order(checkpoint.specs[name].role)
        return self._values(name, data if order is None else data[order], kind)

    def _order(self, role: str) -> Tensor | None:
        """The stored row of each of Hugging Face's rows; None if the orders agree."""
        if role not in self._orders:
            order = gguf_rows(self.checkpoint.architecture, self.checkpoint.dimensions, role)
            self._orders[role] = None if order is None else torch.argsort(order)
        return self._orders[role]

    def rows(self, name: str, rows: range) -> Tensor:
        """Some rows of a matrix, in the order of the file (the same for embeddings and heads)."""
        if not isinstance(self.checkpoint, GgufCheckpoint):
            return self._of_codes(name, slice(rows.start, rows.stop))
        return self._values(name, *self.checkpoint.stored_rows(name, rows))

    def picked(self, name: str, rows: Tensor) -> Tensor:
        """The rows of a table at some indices; no others are read."""
        checkpoint = self.checkpoint
        if not isinstance(checkpoint, GgufCheckpoint):
            return self._of_codes(name, rows)
        found = [checkpoint.stored_rows(name, range(i, i + 1)) for i in rows.tolist()]
        return self._values(name, torch.cat([data for data, _ in found]), found[0][1])

    def _values(self, name: str, data: Tensor, kind: str) -> Tensor:
        if data.dtype.is_floating_point:
            return data.float()
        return self._decoded(data, kind, self.checkpoint.specs[name].shape[1])

    def _of_codes(self, name: str, rows: slice | Tensor) -> Tensor:
        """The same from codes, which stay in memory for the tables, as they are read in runs."""
        Q = self._tables.get(name) or self.checkpoint.quantized(name)
        if Q is None:
            return self.checkpoint.tensor(name)[rows]
        if self.checkpoint.specs[name].block is None:
            self._tables[name] = Q
        return _some(Q, rows)

    def _decoded(self, data: Tensor, kind: str, columns: int) -> Tensor:
        """The values of GGUF blocks ``[rows, bytes]``."""
        number = GGMLQuantizationType[kind]
        if not self._has_ggml:
            from gguf.quants import dequantize

            return torch.from_numpy(np.ascontiguousarray(dequantize(data.numpy(), number)))
        from edgepack.runtimes.ggml import dequantize_into

        size = len(data) * columns
        if self._room.numel() < size:
            self._room = torch.empty(size)
        out = self._room[:size].view(len(data), columns)
        step = -(-len(data) // self._threads)
        parts = [slice(start, start + step) for start in range(0, len(data), step)]
        done = self._pool.map(
            lambda part: dequantize_into(int(number), data[part].numpy(), out[part].numpy()), parts
        )
        list(done)  # raises what a part raised
        return out


class DeviceReader(Reader):
    """The same on a `device`, where formats decode by operations of torch, to the same bits.

    Codes are sent once and stay there, the first ones that fit: a step reads all of them in turn.
    Matrices in no format of edgepack's are decoded on the CPU.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        super().__init__(checkpoint)
        self.device, self._kept = device, dict[str, QuantizedTensor | None]()
        self._room_left = free_memory(device) // 2

    def matrix(self, name: str) -> Tensor:
        """See `Reader`."""
        Q = self._codes(name)
        return super().matrix(name).to(self.device) if Q is None else Q.dequantize()

    def rows(self, name: str, rows: range) -> Tensor:
        """See `Reader`."""
        Q, part = self._codes(name), slice(rows.start, rows.stop)
        return super().rows(name, rows).to(self.device) if Q is None else _some(Q, part)

    def picked(self, name: str, rows: Tensor) -> Tensor:
        """See `Reader`."""
        return super().picked(name, rows.cpu()).to(self.device)

    def _codes(self, name: str) -> QuantizedTensor | None:
        if name in self._kept:
            return self._kept[name]
        Q = self.checkpoint.quantized(name)
        if Q is None:
            self._kept[name] = None
            return None
        Q = Q.to(self.device)
        size = sum(part.nbytes for part in (Q.codes, *Q.grid.values()))
        if size <= self._room_left:
            self._room_left -= size
            self._kept[name] = Q
        return Q


def _some(Q: QuantizedTensor, rows: slice | Tensor) -> Tensor:
    """The values of some rows."""
    grid = {field: value[rows] for field, value in Q.grid.items()}
    return QuantizedTensor(Q.format, Q.codes[rows], grid).dequantize()
