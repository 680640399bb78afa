"""Tokenizers of merged models, and the rows that embeddings take for them."""

import json
import random
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, normalizers
from transformers import PreTrainedTokenizerFast

from edgepack.checkpoint.tokenizer import from_folder
from edgepack.errors import RecipeError
from edgepack.merge.embeddings import TokenRule, plan_rows
from edgepack.merge.tokenizers import merge_tokenizers
from edgepack.merge.vocabulary import Vocabulary, compare
from tests.support.tiny import SPECIAL, TEXT, make_tokenizer
from tests.support.vocabularies import sentencepiece

GOLDEN = json.loads((Path(__file__).parent / "golden/tokenizers.json").read_text())
"""Made by benchmarks/merge_parity_tokenizers.py."""
N = len(make_tokenizer())


def wrap(backend, **special):
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, clean_up_tokenization_spaces=False, **special
    )


def golden_input(name):
    entry = GOLDEN["inputs"][name]
    backend = Tokenizer.from_str(json.dumps(entry["tokenizer"]))
    return Vocabulary(name, wrap(backend), entry["rows"])


def embedding(name):
    entry = GOLDEN["inputs"][name]
    values = torch.zeros(entry["rows"], 4)
    values[:, entry["column"]] = torch.arange(1, entry["rows"] + 1)
    return values


def rule(entry):
    source, force = entry.get("source"), entry.get("force", False)
    if isinstance(source, dict) and source["kind"] == "zero":
        return TokenRule(zero=True, force=force)
    if isinstance(source, dict):
        return TokenRule(source["model"], source.get("token"), source.get("token_id"), force=force)
    return TokenRule(source, force=force)


def of_case(case):
    options = case.get("tokenizer") or {"source": case["tokenizer_source"]}
    is_outside = options["source"] in GOLDEN["inputs"] and options["source"] not in case["models"]
    return merge_tokenizers(
        [golden_input(name) for name in case["models"]],
        case.get("base_model"),
        source=options["source"],
        rules={token: rule(entry) for token, entry in options.get("tokens", {}).items()},
        pad_to_multiple_of=options.get("pad_to_multiple_of"),
        outside=golden_input(options["source"]) if is_outside else None,
    )


def vocabulary(model, tokenizer, rows=None):
    return Vocabulary(model, tokenizer, rows or len(tokenizer))


def added(tokenizer, *tokens, special=True):
    tokenizer.add_tokens([AddedToken(t, special=special, normalized=not special) for t in tokens])
    return tokenizer


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: "".join(case["models"]))
@pytest.mark.parametrize("tensor", ["model.embed_tokens.weight", "lm_head.weight"])
def test_rows_are_those_of_mergekit(case, tensor):
    """Exactly, for every token of every input; padding is compared where the input has none."""
    merged = of_case(case)
    sign = 1 if tensor.startswith("model") else -1
    tensors = {name: sign * embedding(name) for name in case["models"]}
    compared = 0
    for name in case["models"]:
        rows = merged.rows.take(name, tensors)
        for token, expected in case["result"][name][tensor].items():
            index = merged.ids[token] if token else merged.rows.count - 1
            if token and merged.rows.filled[index]:  # of no input: mergekit takes zeros for a row
                assert not any(expected)
                continue
            assert rows[index].tolist() == expected, (name, token)
            compared += 1
    assert compared >= 10 * len(case["models"])


def test_padding_that_mergekit_drops_is_kept():
    """Qwen's 152064 rows for 151665 tokens (mergekit #425)."""
    case = next(c for c in GOLDEN["cases"] if c.get("tokenizer_source") == "B")
    assert "B" in case["models"]
    merged = of_case(case)
    assert case["result"]["rows"] == 14
    assert merged.rows.count == 24
    tensors = {name: embedding(name) for name in case["models"]}
    assert torch.equal(merged.rows.take("B", tensors), tensors["B"])
    means = merged.rows.take("C", tensors)[:14].mean(dim=0)
    torch.testing.assert_close(merged.rows.take("C", tensors)[20], means)


def test_inputs_that_differ_in_padding_only_need_no_option():
    a, b = (vocabulary(n, make_tokenizer(), rows) for n, rows in (("a", N + 8), ("b", N)))
    merged = merge_tokenizers([a, b], "a")
    assert merged.content is None
    assert merged.rows.count == N + 8
    assert merged.rows.is_identity("a", N + 8)
    assert not merged.rows.is_identity("b", N)
    E = torch.randn(N, 8)
    assert torch.equal(merged.rows.take("b", {"b": E})[:N], E)


def test_a_difference_without_an_option_is_an_error_that_lists_tokens():
    a = vocabulary("a", added(make_tokenizer(), "<|x|>", "<|y|>"))
    b = vocabulary("b", added(make_tokenizer(), "<|y|>", "<|z|>"))
    with pytest.raises(RecipeError, match="differ in 3 tokens") as error:
        merge_tokenizers([a, b], "a")
    for part in ("only a has '<|x|>'", "only b has '<|z|>'", f"'<|y|>' ({N + 1} and {N})"):
        assert part in str(error.value)
    assert "tokenizer_source: union" in error.value.hint
    assert len(compare(a, b)) == 3
    many = vocabulary("many", added(make_tokenizer(), *(f"<|{i}|>" for i in range(9))))
    with pytest.raises(RecipeError, match="and 5 more"):
        merge_tokenizers([vocabulary("c", make_tokenizer()), many])


def test_a_union_splits_text_as_the_tokenizer_that_extends_the_other(tmp_path):
    """Pieces come with their merges: mergekit's union would cut ``the`` out of ``other``."""
    small, large = make_tokenizer(vocab=300), make_tokenizer(vocab=420)
    merged = merge_tokenizers([vocabulary("s", small), vocabulary("l", large)], source="union")
    merged.write(tmp_path)
    united = from_folder(tmp_path)
    assert united.get_vocab() == large.get_vocab()
    for text in [*TEXT, "other theses bathe", SPECIAL[1] + "x" + SPECIAL[2]]:
        assert united.encode(text) == large.encode(text)
    assert united.chat_template == small.chat_template
    assert united.eos_token == small.eos_token


def test_a_union_keeps_the_ids_of_the_base_and_appends(tmp_path):
    base = added(make_tokenizer(vocab=400), "<|base|>")
    other = added(make_tokenizer(), "<|other|>", "<tool>", special=False)
    vocabularies = [vocabulary("base", base, 600), vocabulary("other", other)]
    merged = merge_tokenizers(vocabularies, "base", source="union")
    merged.write(tmp_path)
    united = from_folder(tmp_path)
    assert merged.rows.count == 600
    assert {t: i for t, i in united.get_vocab().items() if i <= 400} == base.get_vocab()
    for text in TEXT:
        assert united.decode(united.encode(text)) == text
        assert set(united.encode(text)) <= set(range(len(united)))
    mixed = "a<|base|>b<|other|>c<tool>d"
    assert united.decode(united.encode(mixed)) == mixed
    assert [united.get_vocab()[t] for t in ("<|base|>", "<|other|>")] == [
        merged.ids["<|base|>"],
        merged.ids["<|other|>"],
    ]
    assert not united.added_tokens_decoder[merged.ids["<tool>"]].special


def test_pieces_without_a_row_are_not_taken_over(tmp_path):
    """Nor are their merges, which a tokenizer without the piece could not load."""
    small, large = make_tokenizer(vocab=300), make_tokenizer(vocab=420)
    inputs = [vocabulary("s", small), vocabulary("l", large, 400)]
    merged = merge_tokenizers(inputs, "s", source="union")
    assert max(merged.ids.values()) == 399
    merged.write(tmp_path)
    assert from_folder(tmp_path).get_vocab() == {
        token: index for token, index in large.get_vocab().items() if index < 400
    }


def test_three_inputs_give_pieces_and_added_tokens(tmp_path):
    bytes_ = [vocabulary("s", make_tokenizer(vocab=300)), vocabulary("l", make_tokenizer())]
    other = vocabulary("added", added(make_tokenizer(vocab=300), "<|e|>"))
    merged = merge_tokenizers([*bytes_, other], "s", source="union")
    merged.write(tmp_path)
    assert merged.ids["<|e|>"] == N
    assert from_folder(tmp_path).encode("<|e|>") == [N]


def test_sentencepiece_with_bytes_unites(tmp_path):
    one, other = sentencepiece(), sentencepiece(("▁then", "▁wor", "▁world"))
    merged = merge_tokenizers([vocabulary("one", one), vocabulary("other", other)], source="union")
    merged.write(tmp_path)
    united = from_folder(tmp_path)
    assert len(united) > len(one)
    assert united.tokenize("world")[-1] == "▁world"
    assert united.encode("thenñ")[-2:] == one.encode("thenñ")[-2:]


def test_what_cannot_be_united_is_named():
    bytes_ = vocabulary("gpt", make_tokenizer(vocab=300))
    pieces = vocabulary("spm", sentencepiece())
    with pytest.raises(RecipeError, match=r"the alphabet differs.*gpt.*spm.*cannot be united"):
        merge_tokenizers([bytes_, pieces], source="union")
    unigram = golden_input("U")
    with pytest.raises(RecipeError, match=r'the kind of vocabulary differs.*"BPE".*"Unigram"'):
        merge_tokenizers([pieces, unigram], source="union")
    lower = make_tokenizer()
    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(RecipeError, match=r"the normalizer differs.*none.*Lowercase"):
        merge_tokenizers([bytes_, vocabulary("lower", lower)], source="union")
    merged = merge_tokenizers([bytes_, vocabulary("lower", lower)], "gpt", source="base")
    assert any("more of lower cannot be in the result" in w for w in merged.warnings)


def test_other_normalizers_are_a_warning_where_only_added_tokens_differ():
    lower = added(make_tokenizer(), "<|new|>")
    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    inputs = [vocabulary("a", make_tokenizer()), vocabulary("lower", lower)]
    merged = merge_tokenizers(inputs, source="union")
    assert merged.ids["<|new|>"] == N
    assert any("the normalizer of lower differs; that of a is used" in w for w in merged.warnings)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"<|n|>": TokenRule("b", token="nowhere")}, "b has no token 'nowhere'"),
        ({"<|n|>": TokenRule("b", token_id=N)}, f"b has no row {N}"),
        ({"<|n|>": TokenRule("c")}, "c is not among the models"),
        ({"<|n|>": TokenRule("b")}, "b has no token '<|n|>'"),
    ],
)
def test_rules_that_name_nothing_are_refused(rules, message):
    inputs = [vocabulary(name, make_tokenizer()) for name in "ab"]
    with pytest.raises(RecipeError, match=r"tokenizer\.tokens\.<\|n\|>") as error:
        merge_tokenizers(inputs, "a", source="base", rules=rules)
    assert message in str(error.value)
    with pytest.raises(RecipeError, match="elsewhere is not among the models"):
        merge_tokenizers(inputs, source="elsewhere")


def test_a_new_token_gets_a_row_and_an_id(tmp_path):
    inputs = [vocabulary(name, make_tokenizer()) for name in "ab"]
    rules = {
        "<|new|>": TokenRule("b", token="a"),
        "<|none|>": TokenRule(),
        "<|zero|>": TokenRule(zero=True),
    }
    merged = merge_tokenizers(inputs, "a", source="base", rules=rules, pad_to_multiple_of=64)
    assert merged.rows.count == 512 + 64 * (N + 3 > 512)
    assert any("no model has a row for '<|none|>'" in w for w in merged.warnings)
    E = {name: torch.randn(N, 8) for name in "ab"}
    rows = merged.rows.take("a", E)
    assert torch.equal(rows[N], E["b"][inputs[1].ids["a"]])
    torch.testing.assert_close(rows[N + 1], rows[[*range(N + 1), N + 2]].mean(dim=0))
    assert not rows[N + 2].any()
    assert merged.rows.needs("a") == ("a", "b")
    merged.write(tmp_path)
    assert from_folder(tmp_path).encode("x<|new|>")[-1] == N


def test_biases_of_a_head_and_other_types_take_rows_too():
    inputs = [vocabulary("a", make_tokenizer()), vocabulary("b", added(make_tokenizer(), "<|b|>"))]
    merged = merge_tokenizers(inputs, "a", source="union")
    bias = {"a": torch.randn(N), "b": torch.randn(N + 1)}
    assert torch.equal(merged.rows.take("a", bias), torch.cat([bias["a"], bias["b"][N:]]))
    half = {name: torch.randn(n, 4).bfloat16() for name, n in (("a", N), ("b", N + 1))}
    taken = merged.rows.take("a", half)
    assert taken.dtype == torch.bfloat16
    assert torch.equal(taken, torch.cat([half["a"], half["b"][N:]]))


def test_files_of_the_base_are_copied_as_they_are(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(source)
    (source / "merges.txt").write_text("#version\n")
    target.mkdir()
    inputs = [vocabulary("a", tokenizer), vocabulary("b", make_tokenizer())]
    merge_tokenizers(inputs).write(target, source)
    assert {p.name: p.read_bytes() for p in source.iterdir()} == {
        p.name: p.read_bytes() for p in target.iterdir()
    }


def test_an_old_list_of_added_tokens_gets_the_new_ones(tmp_path):
    """tokenizer_config.json of transformers 4 lists added tokens; those win over tokenizer.json."""
    source = tmp_path / "source"
    make_tokenizer().save_pretrained(source)
    config = json.loads((source / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"] = {
        str(i): {"content": t, "special": True, "normalized": False, "lstrip": False}
        for i, t in enumerate(SPECIAL)
    }
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    inputs = [
        vocabulary("a", from_folder(source)),
        vocabulary("b", added(make_tokenizer(), "<|b|>")),
    ]
    target = tmp_path / "target"
    target.mkdir()
    merge_tokenizers(inputs, source="union").write(target, source)
    assert from_folder(target).encode("<|b|>") == [N]


def test_the_same_model_alone_keeps_everything():
    merged = merge_tokenizers([vocabulary("a", make_tokenizer(), 700)])
    assert merged.rows.count == 700
    assert merged.rows.is_identity("a", 700)
    assert merged.template is None
    assert merged.warnings == ()


class Plain:
    """The part of a vocabulary that rows depend on."""

    def __init__(self, model, ids, rows):
        self.model, self.ids, self.rows = model, ids, rows

    def row(self, token):
        index = self.ids.get(token)
        return index if index is not None and index < self.rows else None


def by_definition(model, ids, count, inputs, base, E):
    """A merged embedding row by row, as the documentation says it."""
    own = next(v for v in inputs if v.model == model)
    tokens = {index: token for token, index in ids.items()}
    rows, filled = {}, []
    for index in range(count):
        if index not in tokens:
            if index < own.rows and index not in own.ids.values():
                rows[index] = E[model][index]
            else:
                filled.append(index)
            continue
        having = [v for v in inputs if v.row(tokens[index]) is not None]
        if own in having:
            having = [own]
        elif any(v.model == base for v in having):
            having = [v for v in having if v.model == base]
        if having:
            vectors = [E[v.model][v.row(tokens[index])] for v in having]
            rows[index] = sum(vectors) / len(vectors)
        else:
            filled.append(index)
    named = [rows[i] for i in rows if i in tokens]
    out = torch.zeros(count, E[model].shape[1])
    for index, value in rows.items():
        out[index] = value
    for index in filled:
        out[index] = torch.stack(named).mean(dim=0)
    return out


@pytest.mark.parametrize("seed", range(40))
def test_rows_are_as_defined_for_any_vocabularies(seed):
    rng = random.Random(seed)
    words = [f"t{i}" for i in range(10)]
    inputs, E = [], {}
    for name in "abc"[: rng.randint(1, 3)]:
        chosen = rng.sample(words, rng.randint(3, 10))
        places = rng.sample(range(12), len(chosen))  # with gaps
        rows = rng.randint(max(places) - 1, 15)
        inputs.append(Plain(name, dict(zip(chosen, places, strict=True)), rows))
        E[name] = torch.randn(rows, 3, generator=torch.Generator().manual_seed(rng.randrange(99)))
    base = rng.choice([None, *(v.model for v in inputs)])
    tokens = sorted({token for v in inputs for token in v.ids})
    ids = dict(zip(tokens, rng.sample(range(14), len(tokens)), strict=True))
    plan = plan_rows(ids, 16, inputs, base)
    for v in inputs:
        needed = {name: E[name] for name in plan.needs(v.model)}
        expected = by_definition(v.model, ids, 16, inputs, base, E)
        torch.testing.assert_close(plan.take(v.model, needed), expected)
