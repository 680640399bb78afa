"""Combined adapters against stock PEFT, and against what they are defined as."""

import math

import pytest
import torch

from edgepack.adapters import files
from edgepack.adapters.adapter import Adapter, BaseId, Lora
from edgepack.adapters.combine import combine, svd
from edgepack.errors import EdgepackError

NAME = "model.layers.0.self_attn.q_proj.weight"
BASE = BaseId("m", "0" * 64)
SCALES = [[1.0, 1.0], [0.7, 0.4], [1.5, -0.5]]


def pair(seed, rank=3):
    draw = torch.Generator().manual_seed(seed)
    return Lora(torch.randn(rank, 20, generator=draw), torch.randn(30, rank, generator=draw))


def two(ranks=(3, 3)):
    return [Adapter({NAME: pair(i, rank)}, BASE) for i, rank in enumerate(ranks)]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("scales", SCALES, ids=str)
@pytest.mark.parametrize("method", ["cat", "svd", "linear", "ties"])
def test_as_peft_combines_the_same_files(base, tmp_path, method, scales):
    """Two adapters saved by PEFT, with different alphas (but for ties), on overlapping modules."""
    peft = pytest.importorskip("peft")
    import transformers

    folder = base.folder.parent / "llama"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).float()
    both = {
        "x": (6, ["q_proj", "up_proj"]),
        "y": (6 if method == "ties" else 3, ["q_proj", "down_proj"]),
    }
    for number, (name, (alpha, targets)) in enumerate(both.items()):
        config = peft.LoraConfig(r=3, lora_alpha=alpha, target_modules=targets)
        if number == 0:
            wrapped = peft.get_peft_model(model, config, name)
        else:
            wrapped.add_adapter(name, config)
    torch.manual_seed(5)
    for name, value in wrapped.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(value, std=0.2)
    wrapped.save_pretrained(tmp_path)
    options = {"density": 0.5} if method == "ties" else {}
    wrapped.add_weighted_adapter(list(both), scales, "z", combination_type=method, **options)
    loaded = [(files.read(tmp_path / name, base), s) for name, s in zip(both, scales, strict=True)]
    found = combine(loaded, method, **options).weights
    layers = {
        name.removeprefix("base_model.model.") + ".weight": layer
        for name, layer in wrapped.named_modules()
        if "z" in getattr(layer, "lora_A", {})
    }
    assert set(found) == set(layers)
    for name, layer in layers.items():
        wanted = layer.get_delta_weight("z").detach()
        torch.testing.assert_close(found[name].delta(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scales", SCALES, ids=str)
def test_cat_is_the_sum_and_svd_its_best_approximation(scales):
    adapters = two((3, 2))
    given = list(zip(adapters, scales, strict=True))
    wanted = sum(s * a.weights[NAME].delta() for a, s in given)
    found = combine(given, "cat").weights[NAME]
    assert found.rank == 5
    torch.testing.assert_close(found.delta(), wanted)
    values = torch.linalg.svdvals(wanted)
    for rank in (1, 2, 3, 4):
        low = combine(given, "svd", rank=rank).weights[NAME]
        assert low.rank == rank
        left = torch.linalg.norm(low.delta() - wanted)
        assert float(left) == pytest.approx(math.sqrt(values[rank:].square().sum()), rel=1e-4)
    assert combine(given, "svd").weights[NAME].rank == 3
    torch.testing.assert_close(combine(given, "svd", rank=99).weights[NAME].delta(), wanted)


def test_ties_elects_signs_and_averages_the_winners():
    """Written out for one column: three values, two of which agree."""
    one, b = torch.ones(1, 1), torch.tensor
    parts = [b([[4.0], [1.0]]), b([[2.0], [-3.0]]), b([[-1.0], [-5.0]])]
    adapters = [(Adapter({NAME: Lora(one, part)}, BASE), 1.0) for part in parts]
    found = combine(adapters, "ties", density=1.0).weights[NAME]
    torch.testing.assert_close(found.lora_B, b([[3.0], [-4.0]]))  # means of 4, 2 and of −3, −5
    found = combine(adapters, "ties", density=0.5).weights[NAME]
    torch.testing.assert_close(found.lora_B, b([[4.0], [-4.0]]))  # 4 alone, −3 and −5


def test_what_cannot_be_combined():
    a, b = two((3, 2))
    with pytest.raises(EdgepackError, match=r"linear: .*q_proj.* has ranks 3, 2") as error:
        combine([(a, 1), (b, 1)], "linear")
    assert "svd or cat" in error.value.hint
    other = Adapter(b.weights, BaseId("other", "1" * 64))
    with pytest.raises(EdgepackError, match="different bases"):
        combine([(a, 1), (other, 1)], "cat")
    with pytest.raises(EdgepackError, match="density 0"):
        combine([(a, 1)], "ties", density=0)


def test_weights_of_one_adapter_only_keep_its_scale():
    a = Adapter({NAME: pair(0), "x": pair(1)}, BASE, notes=("doubtful",))
    b = Adapter({NAME: pair(2)}, BASE, notes=("doubtful",))
    found = combine([(a, 0.5), (b, 2)], "cat")
    torch.testing.assert_close(found.weights["x"].delta(), 0.5 * a.weights["x"].delta())
    assert found.notes == ("doubtful",)
    torch.testing.assert_close(svd([(pair(0), 2.0)]).delta(), 2 * pair(0).delta())
