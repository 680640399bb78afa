"""Several adapters with scales on one loaded model, in llama.cpp and in ONNX Runtime."""

import shutil

import numpy as np
import pytest

from edgepack.adapters import files
from edgepack.adapters.base import PackedBase
from edgepack.adapters.gguf_factors import GgufFactors
from edgepack.core.adapters import Found, read_about, usable
from edgepack.errors import EdgepackError
from edgepack.runtimes.base import Sampling
from edgepack.runtimes.models import Model
from tests.support.adapters import changed_factors, expected, packed, random_adapter
from tests.support.ggufs import INT8, TOKENS, distance

pytestmark = pytest.mark.slow

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
    listed = {found.name: found for found in files.listed(base.folder)}
    paths = [usable(listed[name], base.target) for name in ("a", "b")]
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
def test_changed_factors_have_their_old_rank(base, tmp_path):
    """The difference has rank 2r, on top of L·R 3r; but at scale 1 runtimes multiply by r."""
    if not base.ranks:
        pytest.skip("a base without factors")
    adapter = changed_factors(base)
    written = files.write(tmp_path / "x", adapter, base)
    about = read_about(tmp_path / "x")
    path = usable(Found("x", tmp_path / "x", about), base.target)
    for scale in (1, 0.5, 0):
        with Model("m", base.file, base.factors, ((path, scale),)).open(128) as runtime:
            wanted = expected(base, TOKENS, [(adapter, scale)])
            assert distance(runtime.logits(TOKENS), wanted) < INT8
            if base.target == "gguf":
                continue
            ranks = {v.shape()[1] for n, v in runtime._given.items() if n.endswith("lora_A")}
            in_blocks = any(".adapter." in name for name in runtime._given)  # L, R are constants
            twice = in_blocks or scale == 0.5
            assert max(ranks) <= (1 + twice) * max(base.ranks.values())
    if base.target == "gguf":
        assert path == written["factors.gguf"]
        ranks = GgufFactors(path, base.checkpoint).ranks
        assert ranks == base.ranks
        with pytest.raises(EdgepackError, match="holds L and R too"):
            files.read(path, base)
        assert usable(Found("x", tmp_path / "x", about), "gguf", factors=False).name == files.FILE
        with Model("m", base.file, None, ((written[files.FILE], 1),)).open(128) as runtime:
            found = runtime.logits(TOKENS)
        wanted = expected(base, TOKENS, [(adapter, 1)], factors=False)
        assert distance(found, wanted) < INT8


@pytest.mark.slow
def test_only_changes_of_l_and_r_take_their_place(base, adapters):
    """Adapters of a higher rank are files of their own."""
    assert not (base.folder / "adapters/a/factors.gguf").exists()


@pytest.mark.slow
def test_a_graph_without_room_names_the_way_out(tmp_path):
    pytest.importorskip("onnxruntime")
    out = packed(tmp_path / "m", target="onnx", **PLAIN | {"compress": {"rank": 0}})
    base = PackedBase.open(out)
    adapter = random_adapter(base, names=("q_proj",))
    with pytest.raises(EdgepackError, match="q_proj has no factors in the graph") as error:
        files.write(tmp_path / "x", adapter, base)
    assert "adapters: true" in error.value.hint
