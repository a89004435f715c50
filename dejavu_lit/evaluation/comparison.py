"""What one evaluation compares: two sides, the sets that are measured, the public set, and whether they fit together."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dejavu_lit.data.exclude import prefix
from dejavu_lit.data.prepared import MANIFEST, DataSpec
from dejavu_lit.data.shards import ShardSet
from dejavu_lit.evaluation.audited_model import Modality, Side
from dejavu_lit.evaluation.embeddings import Embeddings
from dejavu_lit.measure.metrics import BLOCK_SETS
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import file_sha256


@dataclass(frozen=True)
class Comparison:
    """Which neighbors are searched: everything that an evaluation cannot change without the embeddings."""

    target: str
    reference: str
    index: str = "flat"
    public_modality: Modality = "image"  # what the target's captions are compared with: images of P, or its captions
    swapped: bool | None = None  # measure B too; None: where the reference is known to have trained on it
    allow_overlap: bool = False  # let both sides have trained on the same data
    device: str = "cpu"
    workers: int = 2
    embeddings: str | None = None  # where embeddings of models that are no run of ours are kept

    def __post_init__(self) -> None:
        if self.public_modality not in ("image", "text"):
            raise UserError(f"public_modality={self.public_modality} must be image or text")


@dataclass(frozen=True)
class Material:
    """The two sides and the sets of an evaluation.

    shards: by block (population, null, swapped); members: of each the keys of the first pairs that count, and how many
    pairs those are of it.
    """

    sides: dict[str, Side]
    modality: dict[str, Modality]  # of the public set, by role
    shards: dict[str, ShardSet]
    members: dict[str, tuple[list[str], int]]
    public: ShardSet
    public_name: str
    data: DataSpec

    @classmethod
    def open(cls, comparison: Comparison, data: DataSpec, out: Path, k: int) -> "Material":
        """What is compared in ``out``.

        Raises:
            UserError: sides that were exchanged or trained on the same pairs, other data than the runs', or fewer public
                images than ``k``.
        """
        store = Path(comparison.embeddings) if comparison.embeddings else out / "embeddings"
        target, reference = (
            Side(name, store, comparison.device, comparison.workers)
            for name in (comparison.target, comparison.reference)
        )
        _check_training(target, reference, comparison, data)
        swapped = _knows_b(reference) if comparison.swapped is None else comparison.swapped
        shards = {name: data.shards(BLOCK_SETS[name]) for name in BLOCK_SETS if name != "swapped" or swapped}
        used = {"population": target.data or data, "null": data, "swapped": reference.data or data}
        sizes = {name: used[name].train_size if name != "null" else None for name in shards}
        public = ShardSet.open(data.public_folder())
        if k > len(public):
            raise UserError(f"k={k} is more than the {len(public)} images of {public.folder}; choose smaller k and ks")
        data.check_labelled()
        return cls(
            {"target": target, "reference": reference},
            {
                "target": comparison.public_modality,
                "reference": "text" if reference.captions_only else comparison.public_modality,
            },
            shards,
            {name: prefix(shards[name], sizes[name], used[name].excluded) for name in shards},
            public,
            data.public_sets.get(data.public, data.public_folder().name),
            data,
        )

    def embed(self, share: tuple[int, int]) -> None:
        """Embed what is missing of every n-th shard from the i-th on, for ``share`` = (i, n), what utility needs included."""
        for role, side in self.sides.items():
            side.embed_share(self.public, self.public_name, self.modality[role], None, share)
            for name, shards in self.shards.items():
                side.embed_share(shards, BLOCK_SETS[name], "text", self.members[name][1], share)
            if not side.captions_only:
                for name in ("H", *filter(None, [self.data.labelled])):
                    with suppress(UserError):  # utility that cannot be had is null, with the reason
                        side.embed_share(self.data.shards(name), name, "image", None, share)

    def embedded(self, role: str) -> Embeddings:
        """The public set's embeddings by one side."""
        return self.sides[role].embeddings(self.public, self.public_name, self.modality[role])

    def captions(self, role: str, name: str) -> Embeddings:
        """The embeddings of one measured set's captions by one side."""
        return self.sides[role].embeddings(self.shards[name], BLOCK_SETS[name], "text", self.members[name][1])


def _knows_b(reference: Side) -> bool:
    """Whether the reference is known to have trained on B: a run that did, or embeddings that bring B."""
    return reference.trained_on == "B" or (reference.given is not None and (reference.given / "B" / "text").is_dir())


def _check_training(target: Side, reference: Side, comparison: Comparison, data: DataSpec) -> None:
    """Refuse what would make the gap meaningless: exchanged sides, or both trained on the same pairs."""
    if target.captions_only:
        raise UserError(f"target={target.name} embeds captions only; a text model can be the reference alone")
    for side in (target, reference):
        _ = side.record
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
    for side in (target, reference):
        if side.record.get("data", manifest) != manifest:
            raise UserError(
                f"{side.name} was trained on other data than {data.folder}, whose sets may overlap with it; "
                "give the data of the runs, or pass allow_overlap=true"
            )
