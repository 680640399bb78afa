"""Predicted speeds are what paper and pencil make of the profile's times."""

from __future__ import annotations

import pytest

from edgepack.device_profile.prediction import predict
from edgepack.device_profile.profile import Work, read_profile
from tests.support.profiles import FLOPS, content, model, timing, write

TIMES = {"f32": 0.4, "q8_0": 0.1, "q4_0": 0.06}
"""Nanoseconds a weight."""
BLOCKS, HEAD, NORMS = 32 * 10**6, 8 * 10**6, 10_000
"""Weights."""
WORK = {
    "types": {"q4_0": BLOCKS * 18 // 32, "q8_0": HEAD * 34 // 32, "f32": 4 * NORMS},
    "flops": 2 * BLOCKS,
    "head": 2 * HEAD,
    "head_type": "q8_0",
}
SECONDS = (BLOCKS * 0.06 + HEAD * 0.1 + NORMS * 0.4) / 1e9
"""Of decoding a token, without a correction."""
PROMPT = 256 * 2 * (BLOCKS + NORMS) / FLOPS + HEAD * 0.1 / 1e9
"""Of 256 tokens."""


def prediction(tmp_path, *models, **work):
    profile = read_profile(write(tmp_path / "bench.json", content(TIMES, models=models)))
    return predict(Work.model_validate(WORK | work), profile)


def test_decoding_is_each_types_bytes_at_its_own_speed(tmp_path):
    decode = prediction(tmp_path).decode
    assert decode.tokens_per_second == pytest.approx(1 / SECONDS)
    assert decode.limit == pytest.approx(1e10 / sum(WORK["types"].values()))
    assert decode.share == pytest.approx(decode.tokens_per_second / decode.limit)
    assert (decode.correction, decode.timings) == (None, 0)


def test_a_prompt_is_many_columns_but_for_the_head(tmp_path):
    prompt = prediction(tmp_path).prompt
    assert prompt.tokens_per_second == pytest.approx(256 / PROMPT)
    assert prompt.limit == pytest.approx(256 * FLOPS / (256 * 2 * BLOCKS + 2 * HEAD))


def test_factors_have_speeds_of_their_types(tmp_path):
    count = 10**6
    decode = prediction(tmp_path, factor_types={"q8_0": count * 34 // 32}).decode
    assert decode.tokens_per_second == pytest.approx(1 / (SECONDS + count * 0.1 / 1e9))


def test_models_of_the_profile_correct_it_by_their_median(tmp_path):
    runs = [
        model(
            WORK,
            timing("decode", 64, 64 * SECONDS / share),
            timing("prompt", 256, PROMPT / share / 0.5),
            timing("decode", 64, 1.0, depth=512),
        )
        for share in (0.5, 0.8, 0.9)
    ]
    found = prediction(tmp_path, *runs)
    assert found.decode.correction == pytest.approx(0.8)
    assert found.decode.timings == 3
    assert found.decode.tokens_per_second == pytest.approx(0.8 / SECONDS)
    assert found.prompt.tokens_per_second == pytest.approx(0.4 * 256 / PROMPT)


def test_models_with_factors_correct_those_with_factors(tmp_path):
    bare = model(WORK, timing("decode", 1, SECONDS / 0.9))
    factors = {"q8_0": 34 * 10**4}
    longer = SECONDS + 32 * 10**4 * 0.1 / 1e9
    ranked = model(WORK | {"factor_types": factors}, timing("decode", 1, longer / 0.6))
    assert prediction(tmp_path, bare, ranked).decode.correction == pytest.approx(0.9)
    with_factors = prediction(tmp_path, bare, ranked, factor_types={"q8_0": 34}).decode
    assert with_factors.correction == pytest.approx(0.6)
    only_bare = prediction(tmp_path, bare, factor_types={"q8_0": 34}).decode
    assert only_bare.correction == pytest.approx(0.9)


def test_models_of_types_that_were_not_timed_correct_nothing(tmp_path):
    graph = model(WORK | {"types": {"onnx": 10}}, timing("decode", 1, 5.0))
    empty = model(WORK | {"types": {}}, timing("decode", 1, 5.0))
    assert prediction(tmp_path, graph, empty).decode.correction is None


def test_a_type_that_was_not_timed_is_named_instead_of_guessed(tmp_path):
    found = prediction(tmp_path, types={"iq3_s": 1000, "q4_0": 10})
    assert (found.decode, found.prompt) == (None, None)
    assert found.skipped == "the profile did not time iq3_s"
    assert found.text() == [
        "nothing is predicted for adb, Phone 1, aarch64, 8 cores: the profile did not time iq3_s"
    ]


def test_the_text_says_limit_share_and_correction(tmp_path):
    run = model(WORK, timing("decode", 1, SECONDS / 0.5))
    head, decode, prompt = prediction(tmp_path, run).text()
    assert head.startswith("predicted for adb, Phone 1, aarch64, 8 cores with 1 thread")
    assert decode == (
        "decoding: 183.6 tokens/s, 49% of the limit of 376.8 "
        "(× 0.50, as in 1 timing of the profile)"
    )
    assert prompt.startswith("prompts of 256 tokens: 14893.1 tokens/s")
    assert prompt.endswith("(uncorrected: no model was timed so there)")
