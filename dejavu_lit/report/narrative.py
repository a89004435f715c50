"""Sentences about an evaluation's numbers: what was compared, which controls pass, how often training saw each pair.

No sentence is stronger than the interval behind it: the verdict is that of ``measure.controls.memorization_found``.
"""

from collections.abc import Mapping
from typing import Any, Literal

from dejavu_lit.measure.controls import FEW_RECORDS, differences_sentence, excludes_zero, few_records_sentence
from dejavu_lit.measure.figures import BLOCK_SETS, BLOCKS, DISPLAY_ORDER, FIGURES, UTILITY, decimal, signed
from dejavu_lit.measure.records import SIDES
from dejavu_lit.models.model_name import ModelName
from dejavu_lit.report.membership import membership_sentence, memorization_sentences
from dejavu_lit.study.ranking import headline_ranking, lacks_seeds, pooled_setting, share_removed

State = Literal["yes", "no", "unknown"]
CheckState = Literal["yes", "no", "caution", "unknown"]
Result = tuple[CheckState, str]  # of a check, with its sentence; caution: not passed, which the verdict does not count
VERDICTS: dict[State, str] = {
    "yes": "Memorization was found",
    "no": "Memorization was not shown",
    "unknown": "No verdict is possible",
}
AS_TRAINING_IMAGES = (
    "as you treat its training images: for some pairs, the caption alone brings back objects that only the image shows."
)
NOT_ABSENT = "Not shown is not absent: dejavu power says how many records and seed pairs detect a gap of a given size."
SEED_NOISE = "The intervals do not include training noise: if the models can be trained again, quote three seed pairs."


def interval(ci: Any, digits: int = 3) -> str:
    """``+0.550 to +0.601``."""
    return f"{signed(ci[0], digits)} to {signed(ci[1], digits)}"


def bracketed(ci: Any) -> str:
    """``[+0.550, +0.601]``."""
    return f"[{signed(ci[0])}, {signed(ci[1])}]"


def measured_blocks(metrics: Mapping[str, Any]) -> list[str]:
    """The blocks that were measured, in the order of tables."""
    return [name for name in DISPLAY_ORDER if metrics.get(name)]


def percent(share: float | None) -> str:
    """``72.4 %``, or a dash for a figure that was not measured."""
    return "–" if share is None else f"{100 * share:.1f} %"


def capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]


def to_state(answer: bool | None) -> State:
    return "unknown" if answer is None else "yes" if answer else "no"


def comparison_summary(metrics: Mapping[str, Any]) -> str:
    """What was compared, and on how many records each model was more precise."""
    counts, k, settings = metrics["counts"], metrics["k"], metrics["settings"]
    reference = ModelName.parse(str(settings.get("reference", "")))
    text = (
        f"For {counts['records']:,} training pairs with annotated objects, the caption alone was used to look up the "
        f"{k} nearest of {searched(metrics)}, once with the target model, which was trained on these pairs, and once "
    )
    if reference.kind == "text":
        text += (
            f"with the text model {reference.rest}, which searched the public captions. The text model "
            "has seen none of the images and knows only what a caption says (the one-model test). "
        )
    else:
        text += "with the reference model, which was not. "
    sign_test = metrics["population"]["ppg"].get("sign_test")
    if sign_test:
        text += (
            "The neighbors named the objects of the training image more precisely with the target model for "
            f"{sign_test['wins']:,} pairs, and with the reference model for {sign_test['losses']:,} pairs."
        )
    return text


def searched(metrics: Mapping[str, Any]) -> str:
    """How much was searched: ``10,000 public images``, or captions."""
    modality = "captions" if metrics["settings"].get("public_modality") == "text" else "images"
    return f"{metrics['counts']['public']:,} public {modality}"


def control_checks(metrics: Mapping[str, Any]) -> dict[str, Result]:
    """{control: whether it passes, with its numbers}: the conditions of a credible gap, and null beside symmetric."""
    ppg = {block: (metrics.get(block) or {}).get("ppg") for block in BLOCKS}
    reasons = metrics.get("reasons", {})
    checks: dict[str, Result] = {
        "Symmetric gap above 0": _above_zero("symmetric", ppg["symmetric"], reasons),
        "Both directions have the same sign": _same_sign(ppg["population"], ppg["swapped"]),
        "Corrected gap above 0": _above_zero("corrected", ppg["corrected"], reasons),
        "Null gap smaller than the measured gap": _null_is_smaller(
            ppg["null"], ppg["symmetric"], ppg["population"], reasons
        ),
        "Better than naming the most frequent objects": _better_than_blind(metrics.get("blind")),
    }
    differences = metrics.get("training_differences")
    if differences is not None:  # it is known how both models were trained
        checks["Both models were trained alike"] = (
            ("caution", differences_sentence(differences))
            if differences
            else ("yes", "Recipe, size, epochs, architecture and mitigations are the same.")
        )
    if few := few_records_sentence(metrics["counts"]):
        checks["Enough records"] = ("caution", few)
    return checks


def cautions(metrics: Mapping[str, Any]) -> list[str]:
    """What must be remedied before one relies on an evaluation: too few records, models that know next to nothing."""
    sentences = [few_records_sentence(metrics["counts"])]
    if (metrics.get("blind") or {}).get("beaten") is False:
        sentences.append(
            "Target and reference do not both beat the blind baseline (naming the most frequent objects): train longer, or on "
            "more pairs, before you rely on this evaluation."
        )
    return [sentence for sentence in sentences if sentence]


def next_steps(metrics: Mapping[str, Any], of_study: bool = False) -> list[str]:
    """What follows for those who decide on the model, one or two sentences each: the remedies, else what the verdict means.

    ``of_study``: without comparing mitigations and training more seed pairs, which are decided for the whole study.
    """
    missing = " and ".join(name for block, name in BLOCK_SETS.items() if not metrics.get(block))
    if not missing:
        unknown = (
            "The models differ as much on pairs that neither saw, so this page supports no decision: train both models again "
            "with the same recipe and seed, or longer."
        )
    elif metrics.get("corrected"):
        unknown = "A verdict needs both directions. Of one alone, look at the corrected gap: it is an indication, not a verdict."
    else:
        unknown = f"A verdict needs more sets: measure {missing}."
    compare = "" if of_study else " Compare mitigations on the same pairs (dejavu mitigate) before you release it."
    verdict = {
        "yes": f"Treat the model {AS_TRAINING_IMAGES}{compare}",
        "no": NOT_ABSENT,
        "unknown": unknown,
    }
    steps = cautions(metrics) or [verdict[to_state(metrics["found"]["found"])]]
    steps += filter(None, [membership_sentence(metrics.get("membership"))])
    return steps if of_study else [*steps, SEED_NOISE]


def study_steps(study: Mapping[str, Any]) -> list[str]:
    """What follows from a study for those who decide on its models, one sentence each; a caution comes in place of verdicts."""
    found = {pooled["found"]["found"] for pooled in study.get("pooled", []) if not study_caution(study)}
    verdicts = {True: f"Treat a model for which memorization was found {AS_TRAINING_IMAGES}", False: NOT_ABSENT}
    steps = [sentence for state, sentence in verdicts.items() if state in found]
    return [*steps, SEED_NOISE] if lacks_seeds(study) else steps


def ppg_sentence(block: str = "symmetric") -> str:
    """What the PPG of a block is, for readers who see it for the first time."""
    if block == "corrected":
        return "Corrected PPG: PPG on A minus PPG on H. 0 means no difference."
    return f"PPG: {FIGURES['ppg'].meaning}. 0 means no difference, 1 the largest possible."


def _above_zero(block: str, ppg: Any, reasons: Mapping[str, str]) -> Result:
    if ppg is None:
        return "unknown", _not_measured(block, reasons)
    sentence = f"{block} PPG {signed(ppg['value'])}, 95 % interval {interval(ppg['ci95'])}"
    if ppg["ci95"][0] > 0:
        return "yes", f"{sentence}."
    # Of the corrected gap the verdict asks only that its value is above 0.
    state: CheckState = "caution" if block == "corrected" and ppg["value"] > 0 else "no"
    return state, f"{sentence}, which is not entirely above 0."


def _same_sign(population: Any, swapped: Any) -> Result:
    if population is None or swapped is None:
        return "unknown", "Only one direction was measured."
    sentence = (
        f"PPG is {signed(population['value'])} on A, and {signed(swapped['value'])} on B with the roles exchanged."
    )
    return to_state(population["value"] * swapped["value"] > 0), sentence


def _null_is_smaller(null: Any, symmetric: Any, population: Any, reasons: Mapping[str, str]) -> Result:
    gap = symmetric or population
    if null is None or gap is None:
        return "unknown", _not_measured("null", reasons)
    sentence = (
        "On the holdout set, which neither model was trained on, "
        f"PPG is {signed(null['value'])} ({interval(null['ci95'])})"
    )
    differs = excludes_zero(null["ci95"])
    if differs:
        sentence += ", so the two models differ in utility"
        sentence += "; the symmetric gap cancels this difference to first order" if symmetric else ""
    sentence += f"; {'symmetric PPG' if symmetric else 'PPG on A'} is {signed(gap['value'])}."
    if abs(null["value"]) >= gap["value"]:
        return "no", sentence
    return "caution" if differs else "yes", sentence


def _better_than_blind(baseline: Any) -> Result:
    if "words" not in (baseline or {}):  # nor in the files of earlier versions
        return "unknown", "Whether the models beat the blind baseline was not recorded."
    return "yes" if baseline["beaten"] else "caution", baseline["words"]


def _not_measured(block: str, reasons: Mapping[str, str]) -> str:
    return f"Not measured: {reasons.get(block, 'no reason was recorded')}."


def exposure_summary(metrics: Mapping[str, Any]) -> str:
    """How often training saw each pair, or that this is unknown."""
    clauses = []
    for side, set_name in (("target", "A"), ("reference", "B")):
        exposure = (metrics.get("exposure") or {}).get(side)
        if exposure:
            clauses.append(
                f"the {side} saw each pair of {set_name} {exposure['mean']:.1f} times "
                f"({exposure['min']} to {exposure['max']})"
            )
        elif mean := ((metrics.get("raw_shards") or {}).get("expected_exposure") or {}).get(side):
            clauses.append(f"the {side} saw each pair of {set_name} {mean:.1f} times on average (raw shards)")
    if not clauses:
        return "Exposure: how often training saw each pair is unknown."
    passes = "" if metrics.get("raw_shards") else " An epoch is one pass, without replacement."
    return f"Exposure: {' and '.join(clauses)}.{passes}"


def utility_rows(metrics: Mapping[str, Any]) -> list[tuple[str, float | None, float | None]]:
    """(measure, target, reference) of the measures that either model has."""
    utilities = metrics.get("utility") or {}
    rows = []
    for name, figure in UTILITY.items():
        values = [(utilities.get(side) or {}).get(name) for side in SIDES]
        target, reference = (value if isinstance(value, int | float) else None for value in values)
        if target is not None or reference is not None:
            rows.append((figure.label, target, reference))
    return rows


def study_sentence(study: Mapping[str, Any]) -> str:
    """The result of a study in one sentence that can be quoted, without its final period."""
    headline = headline_ranking(study)
    choice = headline and headline["recommended"]
    if not headline or not choice or study["recommended"] is None:
        return no_recommendation(study)
    name, size = choice["name"], headline["train_size"]
    remaining = pooled_setting(study.get("pooled", []), name, size)
    block = remaining and (remaining.get("symmetric") or remaining.get("population"))
    ppg = float(block["ppg"]["mean"]) if block else None
    share = share_removed(choice["drop"], ppg) if ppg is not None else None
    cost, utility = choice["utility_loss"], UTILITY[choice["utility"]].label
    utility = "accuracy" if choice["utility"] == "zeroshot_top1" else utility
    loss = f"at no loss of {utility}" if cost <= 0 else f"at a loss of {100 * cost:.1f} points of {utility}"
    at_size = f" at {size:,} pairs" if len({row["train_size"] for row in study["settings"]}) > 1 else ""
    text = f"{name} removes {share or decimal(choice['drop'])} of PPG{at_size} {loss}"
    if remaining is None:
        return text
    verdict = {"yes": "memorization is still found", "no": "memorization is no longer shown"}.get(
        to_state(remaining["found"]["found"]), "whether memorization remains cannot be said"
    )
    return f"{text}; {verdict}" + (f", {decimal(ppg)}" if ppg is not None else "")


def study_caution(study: Mapping[str, Any]) -> str:
    """The settings whose models know too little or that have too few records to show much; "" if there are none."""

    def names(flag: str, value: bool) -> str:
        return ", ".join(dict.fromkeys(row["name"] for row in study["settings"] if row.get(flag) is value))

    sentences = []
    if weak := names("beats_blind", False):
        sentences.append(
            f"Models of {weak} do not beat the blind baseline (naming the most frequent objects); "
            "train longer, or on more pairs, before you rely on these gaps or compare them."
        )
    if few := names("few_records", True):
        sentences.append(
            f"Evaluations of {few} have a set of fewer than {FEW_RECORDS} records with objects, so their intervals are too "
            "narrow; measure more pairs."
        )
    return " ".join(sentences)


def pooled_sentence(pooled: Mapping[str, Any]) -> str:
    """The verdict on one setting of a study, its difference to the default, and what random halves show of single pairs."""
    difference = pooled.get("difference")
    further = [difference["words"]] if difference else []
    further += memorization_sentences(pooled.get("memorization"))
    return " ".join([pooled["found"]["words"], *(f"{capitalized(words)}." for words in further)])


def no_recommendation(study: Mapping[str, Any]) -> str:
    """That no setting is recommended, with the rule, or because there is no default to compare with."""
    headline = headline_ranking(study)
    if headline and headline["default"] not in {row["name"] for row in study["settings"]}:
        return f"no setting is recommended, because the default, {headline['default']}, has no result"
    return "no setting qualifies" + (f" (rule: {study['rule']})" if study.get("rule") else "")
