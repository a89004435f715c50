"""What one evaluation compares: two models, the measured sets and the public set, and whether they fit together."""

import logging
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dejavu_lit.data.key_lists import prefix
from dejavu_lit.data.manifest import MANIFEST
from dejavu_lit.data.prepared import DataSpec
from dejavu_lit.data.shards import ShardSet
from dejavu_lit.evaluation.audited_model import AuditedModel
from dejavu_lit.evaluation.class_names import check_labelled
from dejavu_lit.evaluation.embeddings import Embeddings, Modality
from dejavu_lit.evaluation.settings import PairEvaluation
from dejavu_lit.measure.controls import differences_sentence
from dejavu_lit.measure.figures import BLOCK_SETS
from dejavu_lit.utils.config import flatten
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import file_sha256

SIMILAR_SIZE = 0.05  # share by which two training sets may differ in size
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationInputs:
    """The two models and the sets of an evaluation.

    models and public_modality (of the public set): by role, target and reference.
    shards and members: by block (population, null, swapped). The members of a set are the keys of the pairs that count,
    which are among its first pairs, and how many pairs of the set that takes.
    """

    models: dict[str, AuditedModel]
    public_modality: dict[str, Modality]
    shards: dict[str, ShardSet]
    members: dict[str, tuple[list[str], int]]
    public: ShardSet
    data: DataSpec

    @classmethod
    def open(cls, evaluation: PairEvaluation, data: DataSpec, out: Path, k: int) -> "EvaluationInputs":
        """What an evaluation in ``out`` compares.

        Raises UserError for models that were exchanged or trained on the same pairs, data that is not the runs' own, or fewer
        public images than ``k``.
        """
        store = Path(evaluation.embeddings) if evaluation.embeddings else out / "embeddings"
        keep_in_run = evaluation.embeddings is None
        dealt = data.dealt_as(AuditedModel(str(evaluation.target), store, measured=data).data or data)
        target, reference = (
            AuditedModel(str(name), store, evaluation.device or "cpu", evaluation.workers, keep_in_run, dealt)
            for name in (evaluation.target, evaluation.reference)
        )
        _check_training(target, reference, evaluation, data)
        given_b = reference.embeddings_folder is not None and (reference.embeddings_folder / "B" / "text").is_dir()
        has_b = reference.trained_on == "B" or given_b
        swapped = has_b if evaluation.swapped is None else evaluation.swapped
        trained = {"population": target.data or data, "null": data, "swapped": reference.data or target.data or data}
        shards = {block: dealt.shard_set(BLOCK_SETS[block]) for block in BLOCK_SETS if block != "swapped" or swapped}
        given = evaluation.data.train_size
        sizes = {block: _measured_pairs(trained[block], given) if block != "null" else None for block in shards}
        public = open_public(data, k)
        check_labelled(data)
        modality: Modality = "text" if evaluation.public_modality == "text" else "image"
        return cls(
            models={"target": target, "reference": reference},
            public_modality={"target": modality, "reference": "text" if reference.captions_only else modality},
            shards=shards,
            members={block: prefix(shards[block], sizes[block], trained[block].excluded) for block in shards},
            public=public,
            data=data,
        )

    def embed(self, share: tuple[int, int]) -> None:
        """Compute missing embeddings, utility's included, of every n-th shard from the i-th on, for ``share`` = (i, n)."""
        for role, model in self.models.items():
            model.embed(self.public, self.data.public_name, self.public_modality[role], share=share)
            for block, shards in self.shards.items():
                model.embed(shards, BLOCK_SETS[block], "text", self.members[block][1], share)
            if not model.captions_only:
                for name in ("H", *filter(None, [self.data.labelled])):
                    with suppress(UserError):  # utility that cannot be computed is null, with the reason
                        model.embed(self.data.shard_set(name), self.data.set_name(name), "image", share=share)


@dataclass(frozen=True)
class EmbeddedSets:
    """The embeddings that are searched, and the pairs that both models embedded.

    public: by role; captions: by (role, block); public_keys: sorted; keys: of the measured pairs, by block.
    """

    public: dict[str, Embeddings]
    captions: dict[tuple[str, str], Embeddings]
    public_keys: list[str]
    keys: dict[str, list[str]]

    @classmethod
    def open(cls, inputs: EvaluationInputs, allow_overlap: bool) -> "EmbeddedSets":
        """The embeddings of ``inputs``, computed if missing.

        Raises UserError if the models share no embedding of a set, or a measured pair is public too, without ``allow_overlap``.
        """
        roles, blocks = inputs.models, inputs.shards
        public = {
            role: model.embeddings(inputs.public, inputs.data.public_name, inputs.public_modality[role])
            for role, model in roles.items()
        }
        captions = {
            (role, block): model.embeddings(shards, BLOCK_SETS[block], "text", inputs.members[block][1])
            for role, model in roles.items()
            for block, shards in blocks.items()
        }
        target, reference = (public[role].dim for role in ("target", "reference"))
        if target != reference and not roles["reference"].captions_only:
            log.warning(
                "the embeddings of target and reference have %d and %d values: models of different architecture also differ "
                "in quality, so look at the null and the symmetric gap",
                *(target, reference),
            )
        embedded = set(public["target"].keys) & set(public["reference"].keys)
        public_keys = sorted(embedded - inputs.data.excluded)
        if (lacking := len(inputs.public) - len(embedded)) > 0:
            log.warning(
                "%d of %d public images of %s lack an embedding of target or reference; they are not searched",
                *(lacking, len(inputs.public), inputs.data.public_name),
            )
        keys = {}
        for block in blocks:
            members = set(inputs.members[block][0]) - inputs.data.excluded
            if not allow_overlap and (shared := members.intersection(public_keys)):
                raise UserError(
                    f"data.public={inputs.data.public} has {len(shared)} keys of {blocks[block].folder}, the first is "
                    f"{min(shared)}; search other public images, prepare them with other keys if they are other images (shards "
                    "of img2dataset with data.reader.key=url), or pass allow_overlap=true"
                )
            by_reference = captions["reference", block].rows
            keys[block] = [key for key in captions["target", block].keys if key in by_reference and key in members]
            if not keys[block]:
                raise UserError(
                    f"of {len(members)} pairs of {blocks[block].folder} to measure, none has caption embeddings of target and "
                    "reference; check data.exclude, or give embeddings of these pairs"
                )
            if missing := members.difference(keys[block]):
                log.warning(
                    "%d of %d pairs of %s lack a caption embedding of target or reference; the first is %s; they are left out",
                    *(len(missing), len(members), blocks[block].folder, min(missing)),
                )
        if not public_keys:
            raise UserError(
                f"target and reference share no embedding of the public set {inputs.data.public_name}; give embeddings "
                "of its images"
            )
        return cls(public, captions, public_keys, keys)


def open_public(data: DataSpec, k: int) -> ShardSet:
    """The public set; raises UserError if there is none, or if it has fewer images than ``k``."""
    public = ShardSet.open(data.public_folder())
    if k > len(public):
        raise UserError(f"k={k} is more than the {len(public)} images of {public.folder}; choose smaller k and ks")
    return public


def training_differences(target: AuditedModel, reference: AuditedModel) -> dict[str, list[Any]] | None:
    """{option: [target's value, reference's]} of the training options in which two runs differ, with a warning.

    Compared are recipe, model, mitigation, the epochs that were trained, and the number of pairs if it differs by more than
    SIMILAR_SIZE: A and B are not always of exactly one size. None if one of them is not a run.
    """
    if target.run is None or reference.run is None:
        return None
    first, second = _training_options(target), _training_options(reference)
    different = {
        name: [first.get(name), second.get(name)] for name in first | second if first.get(name) != second.get(name)
    }
    if different.get("recipe.epochs") == different.get("epochs"):  # both were trained to their end
        different.pop("recipe.epochs", None)
    a, b = (model.run_json.get("train_size") for model in (target, reference))
    if a and b and max(a, b) > (1 + SIMILAR_SIZE) * min(a, b):
        different["pairs"] = [a, b]
    if different:
        log.warning(differences_sentence(different))
    return different


def _training_options(model: AuditedModel) -> dict[str, Any]:
    """{dotted option: value}; the options that only decide when training ends are left to the number of epochs."""
    parts: dict[str, Any] = {
        group: model.config[group] for group in ("recipe", "model", "mitigation") if group in model.config
    }
    ending = ("mitigation.stop_epoch", "mitigation.gap_budget")
    options = {name: value for name, value in flatten(parts) if name not in ending}
    return {"epochs": model.model_name.epoch_number or model.run_json.get("epochs"), **options}


def _measured_pairs(trained: DataSpec, given: int | None) -> int | None:
    """How many of the first pairs of A or of B are measured, None: all; ``given`` if it is less than what was trained on."""
    is_less = given is not None and (trained.train_size is None or given < trained.train_size)
    return given if is_less else trained.prefix


def _check_training(target: AuditedModel, reference: AuditedModel, evaluation: PairEvaluation, data: DataSpec) -> None:
    """Refuse models whose gap would mean nothing: exchanged ones, or both trained on the same pairs."""
    if target.captions_only:
        raise UserError(
            f"target={target.name} embeds captions only; a text model can only be the reference, so give another target"
        )
    is_base = evaluation.allow_overlap and evaluation.swapped is False
    trained = [target.data, None if is_base else reference.data]  # a base's own pairs are not measured
    # Each seed deals other halves.
    halves = {f"{d.half} of data.seed={d.seed}" if d.half else "0" for d in (data, *filter(None, trained))}
    if target.data is None:
        halves.add("0")
    if len(halves) > 1:
        raise UserError(
            f"target={target.name}, reference={reference.name} and the data are of different random halves "
            f"({', '.join(sorted(halves))}); compare two runs of one half on their own data"
        )
    if not is_base and target.data and reference.data and target.data.deal != reference.data.deal:
        raise UserError(
            f"half {data.half} was dealt to target={target.name} and reference={reference.name} with another data.train_size "
            "or data.exclude, so their sets may overlap; compare runs that share them"
        )
    for model in (target, reference):
        _ = model.run_json  # raises if a run is not finished
    if evaluation.allow_overlap:
        return
    if target.trained_on == "B":
        raise UserError(f"target={target.name} was trained with side=reference; swap target and reference")
    if reference.trained_on == "A":
        both = f"target={target.name} and reference={reference.name} were both" if target.trained_on else ""
        raise UserError(
            f"{both or f'reference={reference.name} was'} trained on A; train a reference with side=reference, or pass "
            "allow_overlap=true"
        )
    manifest = file_sha256(data.folder / MANIFEST)
    for model in (target, reference):
        if model.run_json.get("data", manifest) != manifest:
            raise UserError(
                f"{model.name} was trained on other data than {data.folder}, whose sets may overlap with it; "
                "give the data of the runs, or pass allow_overlap=true"
            )
