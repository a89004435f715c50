"""What one evaluation compares: two models, the measured sets and the public set, and whether they fit together."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dejavu_lit.data.key_lists import prefix
from dejavu_lit.data.manifest import MANIFEST
from dejavu_lit.data.prepared import DataSpec
from dejavu_lit.data.shards import ShardSet
from dejavu_lit.evaluation.audited_model import AuditedModel
from dejavu_lit.evaluation.embeddings import Embeddings, Modality
from dejavu_lit.measure.figures import BLOCK_SETS
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import file_sha256


@dataclass(frozen=True)
class Comparison:
    """Which neighbors are searched: the settings that cannot change without a new search."""

    target: str
    """RUN, RUN@EPOCH, ARCH@TAG, ARCH@FILE, hf-hub:…, local-dir:…, a model folder, or embeddings:DIR."""
    reference: str
    """The same, or text:MODEL for the one-model test."""
    index: str = "flat"
    """How faiss searches: flat is exact; gpu too, and needs faiss-gpu; ivf is approximate, its recall is measured."""
    public_modality: Modality = "image"
    """What the target's captions are compared with: the images of P, or its captions (text)."""
    swapped: bool | None = None
    """Whether to measure B with the roles exchanged; None: if the reference is known to have trained on B."""
    allow_overlap: bool = False
    """Whether both models may have trained on the same pairs."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, …"""
    workers: int = 2
    """Threads that read and decode."""
    embeddings: str | None = None
    """The folder for all embeddings; None: a run's own embeddings/ if it can be written, else embeddings/ below out."""

    def __post_init__(self) -> None:
        if self.public_modality not in ("image", "text"):
            raise UserError(f"public_modality={self.public_modality} must be image or text")


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
    public_name: str
    data: DataSpec

    @classmethod
    def open(cls, comparison: Comparison, data: DataSpec, out: Path, k: int) -> "EvaluationInputs":
        """What the evaluation in ``out`` compares.

        Raises:
            UserError: models that were exchanged or trained on the same pairs, data that is not the runs' own, or fewer
                public images than ``k``.
        """
        store = Path(comparison.embeddings) if comparison.embeddings else out / "embeddings"
        keep_in_run = comparison.embeddings is None
        target, reference = (
            AuditedModel(name, store, comparison.device, comparison.workers, keep_in_run)
            for name in (comparison.target, comparison.reference)
        )
        _check_training(target, reference, comparison, data)
        swapped = _has_b(reference) if comparison.swapped is None else comparison.swapped
        shards = {block: data.shards(BLOCK_SETS[block]) for block in BLOCK_SETS if block != "swapped" or swapped}
        trained = {"population": target.data or data, "null": data, "swapped": reference.data or data}
        sizes = {block: trained[block].train_size if block != "null" else None for block in shards}
        public = ShardSet.open(data.public_folder())
        if k > len(public):
            raise UserError(f"k={k} is more than the {len(public)} images of {public.folder}; choose smaller k and ks")
        data.check_labelled()
        return cls(
            models={"target": target, "reference": reference},
            public_modality={
                "target": comparison.public_modality,
                "reference": "text" if reference.captions_only else comparison.public_modality,
            },
            shards=shards,
            members={block: prefix(shards[block], sizes[block], trained[block].excluded) for block in shards},
            public=public,
            public_name=data.public_name,
            data=data,
        )

    def embed(self, share: tuple[int, int]) -> None:
        """Compute missing embeddings, utility's included, of every n-th shard from the i-th on, for ``share`` = (i, n)."""
        for role, model in self.models.items():
            model.embed_share(self.public, self.public_name, self.public_modality[role], None, share)
            for block, shards in self.shards.items():
                model.embed_share(shards, BLOCK_SETS[block], "text", self.members[block][1], share)
            if not model.captions_only:
                for name in ("H", *filter(None, [self.data.labelled])):
                    with suppress(UserError):  # utility that cannot be computed is null, with the reason
                        model.embed_share(self.data.shards(name), self.data.set_name(name), "image", None, share)

    def public_embeddings(self, role: str) -> Embeddings:
        """The public set's embeddings by one model."""
        return self.models[role].embeddings(self.public, self.public_name, self.public_modality[role])

    def caption_embeddings(self, role: str, block: str) -> Embeddings:
        """The embeddings of one measured set's captions by one model."""
        shards, count = self.shards[block], self.members[block][1]
        return self.models[role].embeddings(shards, BLOCK_SETS[block], "text", count)


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

        Raises:
            UserError: a measured pair is public too, and ``allow_overlap`` is false.
        """
        roles, blocks = inputs.models, inputs.shards
        public = {role: inputs.public_embeddings(role) for role in roles}
        captions = {(role, block): inputs.caption_embeddings(role, block) for role in roles for block in blocks}
        public_keys = sorted(set(public["target"].keys) & set(public["reference"].keys) - inputs.data.excluded)
        keys = {}
        for block in blocks:
            members = set(inputs.members[block][0]) - inputs.data.excluded
            if not allow_overlap:
                _check_overlap(members, public_keys, inputs, block)
            by_reference = captions["reference", block].rows
            keys[block] = [key for key in captions["target", block].keys if key in by_reference and key in members]
        return cls(public, captions, public_keys, keys)


def _check_overlap(members: set[str], public_keys: Sequence[str], inputs: EvaluationInputs, block: str) -> None:
    if shared := members.intersection(public_keys):
        raise UserError(
            f"data.public={inputs.data.public} has {len(shared)} keys of {inputs.shards[block].folder}, the first is "
            f"{min(shared)}; search other public images, or pass allow_overlap=true"
        )


def _has_b(reference: AuditedModel) -> bool:
    """Whether B can be measured: the reference is a run that trained on B, or embeddings that include B."""
    folder = reference.embeddings_folder
    return reference.trained_on == "B" or (folder is not None and (folder / "B" / "text").is_dir())


def _check_training(target: AuditedModel, reference: AuditedModel, comparison: Comparison, data: DataSpec) -> None:
    """Refuse models whose gap would mean nothing: exchanged ones, or both trained on the same pairs."""
    if target.captions_only:
        raise UserError(
            f"target={target.name} embeds captions only; a text model can only be the reference, so give another target"
        )
    halves = {model.data.half if model.data else 0 for model in (target, reference)} | {data.half}
    if len(halves) > 1:
        raise UserError(
            f"target={target.name}, reference={reference.name} and the data are of different random halves "
            f"({', '.join(map(str, sorted(halves)))}); compare two runs of one half on their own data"
        )
    for model in (target, reference):
        _ = model.run_json  # raises if a run is not finished
    if comparison.allow_overlap:
        return
    if target.trained_on == "B":
        raise UserError(f"target={target.name} was trained with side=reference; exchange target and reference")
    if reference.trained_on == "A" and target.trained_on == "A":
        raise UserError(
            f"target={target.name} and reference={reference.name} were both trained on A; "
            "train a reference with side=reference, or pass allow_overlap=true"
        )
    manifest = file_sha256(data.folder / MANIFEST)
    for model in (target, reference):
        if model.run_json.get("data", manifest) != manifest:
            raise UserError(
                f"{model.name} was trained on other data than {data.folder}, whose sets may overlap with it; "
                "give the data of the runs, or pass allow_overlap=true"
            )
