"""The release gate: what it reads, what it refuses, and that nothing is ever evaluated as code."""

import re

import pytest

from dejavu_lit.cli.gate import EXIT_CODE, Gate
from dejavu_lit.utils.errors import UserError

METRICS = {
    "symmetric": {"ppg": {"value": 0.3, "ci95": [0.1, 0.5]}},
    "null": None,
    "found": {"found": True},
    "by_k": {"10": {"symmetric": {"ppg": {"value": -0.2}}}},
    "reasons": {"null": "the set H was not measured"},
}


@pytest.mark.parametrize(
    ("text", "fails"),
    [
        ("symmetric.ppg.ci95[0]>0.05", True),
        ("symmetric.ppg.ci95[0] > 0.1", False),
        ("symmetric.ppg.ci95[0] >= 0.1", True),
        ("0.4 < symmetric.ppg.ci95[1]", True),
        ("symmetric.ppg.value == 0.3", True),
        ("symmetric.ppg.value != .3", False),
        ('by_k["10"].symmetric.ppg.value<-1e-1', True),
        ("found.found == true", True),
        ("found.found == false", False),
        # and binds stronger than or: true or (false and false)
        ("1 < 2 or 1 > 2 and 1 > 2", True),
        ("(1 < 2 or 1 > 2) and 1 > 2", False),
        ("not 1 > 2 and 1 < 2", True),
        ("not (1 < 2 and 1 > 2)", True),
        ("1 > 2  # a comment ends with its line\n  or symmetric.ppg.value > 0.2\n", True),
    ],
)
def test_judges(text: str, fails: bool) -> None:
    assert Gate.parse(text).fails(METRICS) is fails


def test_the_exit_code_is_its_own() -> None:
    assert EXIT_CODE == 3  # 1 is a user's mistake, 2 the shell's and argparse's


@pytest.mark.parametrize(
    "text",
    [
        "",
        "symmetric.ppg.value",
        "1 <",
        "1 < 2 < 3",
        "symmetric.ppg.value < 1e999",
        "symmetric.ppg.value > -1e999",
        "1 < 2)",
        "(1 < 2",
        "1 > 2) or (1 < 2",
        "and 1 < 2",
        "1 < 2 1 < 2",
        "1 = 2",
        "a < 1; b",
        "a < 'b'",
        "a < b()",
        "a in b",
        "a < 1 if b else 1 < 2",
        "(x := 1) < 2",
        "a[b] < 1",
        "a[0:1] < 1",
        "a < True",
        "a < 1j",
        "f'{a}' < 1",
        "(lambda: 1) < 2",
        "a < 1\0",
    ],
)
def test_refuses_what_is_no_comparison(text: str) -> None:
    with pytest.raises(UserError, match="fail_if"):
        Gate.parse(text)


def test_an_empty_condition_is_said_to_be_empty() -> None:
    with pytest.raises(UserError, match="fail_if= is empty"):
        Gate.parse(" ")


CONDITIONS = ["a.b[0]>0", "by_k['10'].x < 1", "a['it\\'] > 0", 'a["x"] > 1\\', "", "a == 'b\\'c'"]


@pytest.mark.parametrize("text", CONDITIONS)
def test_hydra_reads_the_condition_as_it_was_typed(text: str) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from dejavu_lit.cli.mistakes import quoted

    assert OverridesParser.create().parse_override(quoted(f"fail_if={text}", "evaluate")).value() == text
    assert OverridesParser.create().parse_override(quoted("fail_if=null", "evaluate")).value() is None


@pytest.mark.parametrize(
    "text",
    ["__import__('os').system('true') > 0", "symmetric.ppg.value.__class__ > 0", "len(symmetric) > 0", "open('x') < 1"],
)
def test_nothing_is_evaluated(text: str) -> None:
    with pytest.raises(UserError, match="fail_if"):
        Gate.parse(text).fails(METRICS)


def test_what_was_not_measured_is_an_error_with_its_reason() -> None:
    with pytest.raises(UserError, match="the set H was not measured"):
        Gate.parse("null.ppg.value > 0.2").fails(METRICS)
    # Also where the other half would decide already: a gate that cannot be judged must not pass.
    with pytest.raises(UserError, match="not measured"):
        Gate.parse("1 < 2 or null.ppg.value > 0").fails(METRICS)
    with pytest.raises(UserError, match="not measured"):
        Gate.parse("1 > 2 and null.ppg.value > 0").fails(METRICS)


def test_reasons_are_found_beside_the_figure_and_above_it() -> None:
    cosine = {"auc": None, "tpr_at_fpr": {"0.01": None}, "reasons": {"auc": "all equal", "tpr_at_fpr.0.01": "too few"}}
    metrics = {
        "membership": {"cosine": cosine, "loss": None, "reasons": {"loss": "no logit scale"}},
        "found": {"found": None, "words": "It cannot be said."},
    }
    for condition, reason in (
        ("membership.cosine.auc.value > 0.6", "cosine.auc was not measured: all equal"),
        ('membership.cosine.tpr_at_fpr["0.01"].value > 0.6', "was not measured: too few"),
        ("membership.loss.auc.value > 0.6", "loss was not measured: no logit scale"),
        ("found.found == true", "found.found was not measured: It cannot be said."),
    ):
        with pytest.raises(UserError, match=re.escape(reason)):
            Gate.parse(condition).fails(metrics)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("symetric.ppg.value > 0", "did you mean 'symmetric'"),
        ("symmetric.ppg.ci95[2] > 0", "ci95 has no such entry"),
        ("symmetric.ppg > 0", "is not a number; it has ci95, "),
        ("symmetric.ppg.ci95 > 0", "is not a number"),
        ("symmetric.ppg.value.x > 0", "not in metrics.json"),
    ],
)
def test_wrong_paths_are_named(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Gate.parse(text).fails(METRICS)


@pytest.mark.parametrize(
    "path",
    [
        "symmetric.ppg.ci95[0]",
        'by_k["10"].symmetric.ppg.value',
        "by_objects.captions.symmetric.ppg.value",
        "subgroups['meta.owner'].groups[3].ppg.value",
        "utility.target.zeroshot_top1",
        "found.found",
        "raw_shards.pairs.A",
        "provenance.config.recipe.lr",
        "membership.cosine.auc.value",
    ],
)
def test_names_that_metrics_json_can_have_are_accepted_before_the_work(path: str) -> None:
    Gate.parse(f"{path} > 0.05 or found.found == true")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("symmetric.ppgg.value", "symmetric.ppgg.value is not in metrics.json (did you mean 'ppg'?); symmetric has aucg, ppg"),
        ("symetric.ppg.value", "symetric.ppg.value is not in metrics.json (did you mean 'symmetric'?); it has base, blind, "),
        ("by_k.ten.symmetric.ppg.value", "by_k.ten.symmetric.ppg.value is not in metrics.json; by_k has no such entry"),
        ("symmetric.ppg.ci95[2]", "symmetric.ppg.ci95[2] is not in metrics.json; symmetric.ppg.ci95 has no such entry"),
        ("symmetric.ppg.value.low", "symmetric.ppg.value.low is not in metrics.json; symmetric.ppg.value has no such entry"),
        ("symmetric.ppg.ci95[99999999999]", "symmetric.ppg.ci95[99999999999] is not in metrics.json; symmetric.ppg.ci95 has "),
        ("symmetric.ppg", "symmetric.ppg is not a number; it has ci95, "),
        ("symmetric.ppg.ci95", "symmetric.ppg.ci95 is not a number"),
        ("found.words", "found.words is not a number"),
    ],
)  # fmt: skip
def test_names_that_no_metrics_json_can_have_are_refused_before_the_work(path: str, said: str) -> None:
    with pytest.raises(UserError, match="^" + re.escape(f"fail_if: {said}")):
        Gate.parse(f"found.found == true and {path} > 0.05")


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(UserError, match=r"fail_if=.* is not a condition .*nested"):
        Gate.parse("(" * 500 + "1 < 2" + ")" * 500)
    with pytest.raises(UserError, match="is not a condition"):
        Gate.parse("not " * 100_000 + "1 < 2")
