"""Several adapters with scales on one loaded model, in llama.cpp and in ONNX Runtime."""

import shutil

import numpy as np
import pytest

from edgepack.adapters import files
from edgepack.adapters.adapter import Adapter, Lora
from edgepack.adapters.base import PackedBase
from edgepack.errors import EdgepackError
from edgepack.runtimes.base import Sampling
from edgepack.runtimes.models import Model
from tests.support.adapters import expected, packed, random_adapter
from tests.support.ggufs import INT8, TOKENS, distance

SCALES = ([1, 1], [0.5, -2], [0, 1], [0, 0])
PLAIN = {"export": {"measure": {"tokens": 0}}}
OPEN = {"export": {"measure": {"tokens": 0}, "onnx": {"adapters": True}}}
WEB = {"export": {"measure": {"tokens": 0}, "onnx": {"profile": "web"}}}
BLOCKS = OPEN | {"compress": {"factors": "q8_0", "rank": 8}}
RANK_0 = OPEN | {"compress": {"rank": 0}}
BASES = {
    "gguf": ("gguf", PLAIN),
    "onnx": ("onnx", PLAIN),
    "web": ("onnx", WEB),
    "onnx without factors": ("onnx", RANK_0),
    "onnx with factors in blocks": ("onnx", BLOCKS),
}


@pytest.fixture(scope="module", params=BASES)
def base(request, tmp_path_factory):
    target, changes = BASES[request.param]
    pytest.importorskip("llama_cpp" if target == "gguf" else "onnxruntime")
    return PackedBase.open(packed(tmp_path_factory.mktemp("base"), target=target, **changes))


@pytest.fixture(scope="module")
def adapters(base):
    """Two on different weights, written in the folder."""
    made = {
        "a": random_adapter(base, seed=1, size=0.2),
        "b": random_adapter(base, rank=2, seed=2, size=0.2, names=("q_proj", "down_proj")),
    }
    for name, adapter in made.items():
        files.write(files.place(base.folder, name), adapter, base, dtype="f32")
    return made


def model(base, *scales):
    paths = [files.runtime_file(base.folder / "adapters" / name, base) for name in ("a", "b")]
    return Model("m", base.file, base.factors, tuple(zip(paths, scales, strict=True)))


@pytest.mark.slow
def test_scales_are_switched_without_loading_the_model_again(base, adapters):
    with Model("m", base.file, base.factors).open(128) as runtime:
        plain = runtime.logits(TOKENS)
    with model(base, *SCALES[0]).open(128) as runtime:
        for scales in SCALES:
            runtime.set_scales(scales)
            found = runtime.logits(TOKENS)
            wanted = expected(base, TOKENS, list(zip(adapters.values(), scales, strict=True)))
            assert distance(found, wanted) < INT8
            assert any(scales) == (distance(found, plain) > 0.1)
        assert np.abs(found - plain).max() < 1e-5  # all off: as without them
        runtime.set_scales(SCALES[0])
        first = next(iter(runtime.generate(TOKENS, 1, Sampling(ignore_eos=True))))
        assert first == runtime.logits(TOKENS)[-1].argmax()
        with pytest.raises(EdgepackError, match="nan is no scale"):
            runtime.set_scales([1, float("nan")])
        with pytest.raises(ValueError, match="1 scales for 2"):
            runtime.set_scales([1])


@pytest.mark.slow
def test_the_file_for_onnx_runtimes_holds_factors_and_adapter(base, adapters, tmp_path):
    """The same, through the file that other programs load instead of PEFT's."""
    if base.target == "gguf":
        pytest.skip("an ONNX file")
    wanted = expected(base, TOKENS, [(adapters["a"], 1)])
    folder = base.folder / "adapters/a"
    found = folder / "adapter.onnx_adapter"
    if found.exists():
        with Model("m", base.file, found).open(128) as runtime:
            assert distance(runtime.logits(TOKENS), wanted) < INT8
        return
    shutil.copytree(base.folder, tmp_path / "page")
    shutil.copy(folder / "adapter.safetensors", tmp_path / "page/factors.safetensors")
    with Model("m", tmp_path / "page" / base.file.relative_to(base.folder)).open(128) as runtime:
        assert distance(runtime.logits(TOKENS), wanted) < INT8


@pytest.mark.slow
def test_changed_factors_keep_their_rank_in_onnx(base, tmp_path):
    """L', R' in place of L, R is an adapter of rank 2r; with L·R it is of rank r again."""
    if base.target == "gguf" or not base.ranks:
        pytest.skip("an ONNX file of a base with factors")
    from edgepack.runtimes.onnx_adapters import names_of, read_factors

    name = next(iter(base.ranks))
    L, R = (part.dequantize() for part in base.pair(name))
    new = Lora(R * 1.5, L + 0.01)
    change = Lora.joined([new, Lora(R, -L)])
    written = files.write(tmp_path / "x", Adapter({name: change}, base.identity), base)
    path = next(
        path
        for path in written.values()
        if path.name.startswith("adapter.") and path.suffix != ".json"
    )
    factors, module = read_factors(path), name.removesuffix(".weight")
    a, b = names_of(module, factors)
    if a.startswith(f"{module}.lora"):
        assert factors[a].shape[1] == base.ranks[name]
        found = factors[a].astype("f4") @ factors[b].astype("f4")
        wanted = new.delta().T.numpy()
        assert np.abs(found - wanted).max() < 2e-3 * np.abs(wanted).max()


@pytest.mark.slow
def test_a_graph_without_room_names_the_way_out(tmp_path):
    pytest.importorskip("onnxruntime")
    out = packed(tmp_path / "m", target="onnx", **PLAIN | {"compress": {"rank": 0}})
    base = PackedBase.open(out)
    adapter = random_adapter(base, names=("q_proj",))
    with pytest.raises(EdgepackError, match="q_proj has no factors in the graph") as error:
        files.write(tmp_path / "x", adapter, base)
    assert "adapters: true" in error.value.hint
