"""export.merge_factors: files without L and R, and what that costs."""

from __future__ import annotations

import pytest
import torch

from edgepack.adapters.base import PackedBase
from edgepack.checkpoint import open_checkpoint
from edgepack.core.artifact import APART, Artifact
from tests.support.adapters import packed
from tests.support.commands import fails, write
from tests.support.tiny import TEXT, make_model

pytestmark = pytest.mark.slow

LIBRARY = {"gguf": "llama_cpp", "onnx": "onnxruntime"}
MERGED = {"merge_factors": True, "measure": {"tokens": 256, "context": 64}}


@pytest.mark.slow
@pytest.mark.parametrize("target", ["gguf", "onnx"])
def test_the_files_have_no_factors_and_the_report_says_what_that_costs(tmp_path, target):
    pytest.importorskip(LIBRARY[target])
    out = packed(tmp_path / "a", target=target, export=MERGED)
    base = PackedBase.open(out)
    assert not base.ranks
    assert not any("factors" in name or "adapter" in name for name in base.files)
    manifest = Artifact.open(out).manifest
    assert manifest["merged_factors"] == {"rounded": "the weights themselves", "weights": 14}
    assert all(about["rank"] == 0 for about in manifest["weights"].values())
    results = manifest["measured"]["results"]
    ours, apart = results["edgepack"], results[APART]
    assert ours["bytes"] < apart["bytes"]
    line = f"mean KL {ours['kl_mean']:.4f}, with L·R apart {apart['kl_mean']:.4f}"
    assert line in (out / "report.md").read_text()
    assert ours["kl_mean"] != apart["kl_mean"]


@pytest.mark.slow
@pytest.mark.llama
def test_without_recovery_it_is_the_build_at_rank_0(tmp_path):
    """Rounding Q + L·R would have cost more: its error is on top."""
    pytest.importorskip("llama_cpp")
    quiet = {"measure": {"tokens": 0}}
    merged = PackedBase.open(packed(tmp_path / "a", export=quiet | {"merge_factors": True}))
    plain = PackedBase.open(packed(tmp_path / "b", export=quiet, compress={"rank": 0}))
    assert (merged.folder / "base.gguf").read_bytes() == (plain.folder / "base.gguf").read_bytes()


@pytest.mark.slow
@pytest.mark.llama
def test_after_recovery_what_was_trained_is_rounded(tmp_path):
    pytest.importorskip("llama_cpp")
    recover = {"steps": 4, "tokens": 128, "evaluate_every": 2, "learning_rate": 0.01}
    changes = {"recover": recover, "export": {"measure": {"tokens": 0}}}
    apart = PackedBase.open(packed(tmp_path / "a", **changes))
    merged = packed(tmp_path / "b", **changes | {"export": changes["export"] | MERGED})
    about = Artifact.open(merged).manifest
    assert about["merged_factors"]["rounded"] == "Q + L·R as recovered"
    assert any("against Q + L·R as recovered" in line for line in about["warnings"])
    new, original = PackedBase.open(merged), open_checkpoint(str(tmp_path / "b/llama"))
    for name in apart.ranks:
        trained = apart.weight(name).dense()
        found = new.weight(name).dense()
        assert torch.dist(found, trained) < 0.12 * trained.norm()
        assert torch.dist(found, trained) < 1.05 * torch.dist(found, original.tensor(name))
    norm = "model.norm.weight"  # trained ones are in both
    assert torch.equal(new.checkpoint.tensor(norm), apart.checkpoint.tensor(norm))


def test_nothing_to_merge_is_found_while_planning(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_model(tmp_path / "llama", intermediate=128)
    (tmp_path / "text.txt").write_text("\n".join(TEXT * 30))
    recipe = write(tmp_path / "r.yaml", compress={"rank": 0}, export={"merge_factors": True})
    error, hint, code = fails("plan", recipe)
    assert "export.merge_factors: no weight has factors" in error
    assert "compress.rank" in hint
    assert code == 2
