"""The pairs as training sees them: knobs draw again each epoch, independently of workers and caches; V is unchanged."""

import hashlib
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from open_clip.transform import image_transform
from PIL import Image

from benchmarks.shards import write_shards
from dejavu_lit.data.epoch import epoch_plan
from dejavu_lit.data.module import PairDataModule
from dejavu_lit.data.prepared import DataSpec
from dejavu_lit.data.settings import LoaderSettings
from dejavu_lit.data.shards import Pair, ShardSet
from dejavu_lit.data.stream import ESTIMATE_AFTER, PairStream, TokenCache, load_images, rgb_pixels
from dejavu_lit.mitigation import Mitigation
from dejavu_lit.models.preprocess import Augment, Preprocess
from dejavu_lit.utils.errors import UserError
from tests.data.images import encoded, sample_image
from tests.models.tiny import PREPROCESS

CONFIG = {**PREPROCESS, "size": 32}


def pair(number: int, several: bool = True) -> Pair:
    caption = f"image number {number} has its own words"
    captions = [caption, f"another text of {number}", f"third {number}"]
    meta = {"captions": captions} if several else {}
    size = 40 + number % 7
    return Pair(f"k{number:03d}", encoded(sample_image(number, size, 90 - size)), "png", caption, meta)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("pairs")
    write_shards(out / "A", [pair(number) for number in range(24)], 10)
    write_shards(out / "B", [pair(number, several=False) for number in range(24, 36)], 10)
    write_shards(out / "V", [pair(number) for number in range(40, 48)], 10)
    return out


def char_tokens(texts: list[str]) -> torch.Tensor:
    """A tokenizer whose tokens can be read back."""
    return torch.tensor([list(text.encode().ljust(60)) for text in texts])


def module(
    folder, workers: int = 0, cache_mb: int = 0, augment: bool = False, knobs=None, data=None, **options
) -> PairDataModule:
    pairs = PairDataModule(
        data=DataSpec("x", str(folder), **data or {}),
        side=options.pop("side", "target"),
        batch=4,
        seed=3,
        preprocess=Preprocess(CONFIG),
        tokenizer=char_tokens,
        mitigation=Mitigation(**knobs or {}, image_augment=augment),
        augment=Augment(CONFIG) if augment else None,
        loader=LoaderSettings(workers=workers, cache_mb=cache_mb),
        **options,
    )
    pairs.setup("fit")
    return pairs


def seen(batches) -> dict[int, tuple[bytes, str]]:
    """{position in the set: (image, caption)} of an epoch."""
    return {
        int(index): (image.numpy().tobytes(), bytes(tokens.tolist()).decode().rstrip())
        for batch in batches
        for index, image, tokens in zip(batch["index"], batch["images"], batch["tokens"], strict=True)
    }


def epoch_of(pairs: PairDataModule, epoch: int) -> dict[int, tuple[bytes, str]]:
    plan = replace(pairs.plan, epoch=epoch)
    return seen(
        PairStream(
            pairs.train_set,
            plan,
            0,
            pairs.preprocess,
            char_tokens,
            pairs.mitigation,
            pairs._vocabulary,
            pairs.augment,
        )
    )


def test_without_knobs_images_and_captions_are_unchanged(folder):
    pairs = seen(module(folder).train_dataloader())
    keys = ShardSet.open(folder / "A").keys()
    assert len(pairs) == 24
    for position, (image, caption) in pairs.items():
        original = pair(int(keys[position][1:]))
        assert caption == original.caption
        with Image.open(io.BytesIO(original.image)) as raw:
            assert image == Preprocess(CONFIG)(raw).tobytes()


KNOBS = {"text_mask": 0.3, "text_random": 0.3, "text_shuffle": 0.5, "caption_choice": True, "caption_words": 4}


@pytest.mark.parametrize(("workers", "cache_mb"), [(0, 100), (2, 0), (2, 100)])
def test_draws_do_not_depend_on_workers_or_the_image_cache(folder, workers, cache_mb):
    plain = seen(module(folder, augment=True, knobs=KNOBS).train_dataloader())
    pairs = module(folder, workers, cache_mb, augment=True, knobs=KNOBS)
    assert (pairs._cache is not None) == (cache_mb > 0)
    assert seen(pairs.train_dataloader()) == plain
    pairs.teardown("fit")


def test_draws_change_with_epoch_and_seed(folder):
    pairs = module(folder, augment=True, knobs=KNOBS)
    first, second = epoch_of(pairs, 0), epoch_of(pairs, 1)
    assert epoch_of(pairs, 0) == first
    assert sum(first[p][0] != second[p][0] for p in first) > 20
    assert sum(first[p][1] != second[p][1] for p in first) > 20
    pairs.seed = 4
    other_seed = epoch_of(pairs, 0)
    assert sum(first[p][0] != other_seed[p][0] for p in first) > 20


def test_knobs_do_not_change_v(folder):
    knobs = {**KNOBS, "text_mask": 0.9}
    expected = seen(module(folder).val_dataloader())
    assert seen(module(folder, augment=True, knobs=knobs).val_dataloader()) == expected
    keys = ShardSet.open(folder / "V").keys()
    assert all(caption == pair(int(keys[position][1:])).caption for position, (_, caption) in expected.items())


def test_caption_choice_draws_from_all_captions_and_rejects_data_with_one_each(folder):
    pairs = module(folder, knobs={"caption_choice": True})
    drawn = {epoch_of(pairs, epoch)[0][1] for epoch in range(20)}
    assert drawn == set(pair(int(ShardSet.open(folder / "A").keys(1)[0][1:])).meta["captions"])
    with pytest.raises(UserError, match=r"caption_choice=true needs pairs with several captions"):
        module(folder, side="reference", knobs={"caption_choice": True})


def test_a_knob_that_changes_no_caption_is_named_in_a_warning(folder, caplog):
    module(folder, knobs={"text_mask": 0.3, "caption_words": 6, "caption_choice": True})
    assert not caplog.messages
    module(folder, knobs={"text_mask": 0.3, "caption_words": 7})
    (said,) = caplog.messages
    assert said.startswith("mitigation.caption_words=7 changes none of the first 24 captions of ")


def test_random_words_come_from_the_training_captions(folder, tmp_path):
    pairs = module(folder, knobs={"text_random": 1.0}, data={"train_size": 8})
    keys = ShardSet.open(folder / "A").keys(8)
    own = {word for key in keys for word in pair(int(key[1:])).caption.split()}
    assert set(pairs._vocabulary) == own
    drawn = {word for epoch in range(10) for _, caption in epoch_of(pairs, epoch).values() for word in caption.split()}
    assert drawn <= own
    assert len(drawn) > len(own) / 2
    (tmp_path / "keys.txt").write_text(keys[0])
    data = {"train_size": 8, "exclude": str(tmp_path / "keys.txt")}
    fewer = module(folder, knobs={"text_random": 1.0}, data=data)
    assert keys[0][1:].lstrip("0") not in fewer._vocabulary


def test_the_augmentation_equals_open_clips_and_does_not_use_the_global_generator():
    image = sample_image(5, 66, 60)
    augment = Augment(CONFIG)
    state = torch.get_rng_state()
    ours = [augment(rgb_pixels(image), f"0/0/k{number}") for number in range(20)]
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(ours[0], augment(rgb_pixels(image), "0/0/k0"))
    assert len({array.tobytes() for array in ours}) > 15
    with torch.random.fork_rng():  # the same generator before open_clip's own transform gives the same image
        torch.manual_seed(int.from_bytes(hashlib.blake2b(b"0/0/k0", digest_size=8).digest(), "big"))
        theirs = image_transform(32, is_train=True)(image)
    mean, std = (torch.tensor(PREPROCESS[name]).view(3, 1, 1) for name in ("mean", "std"))
    assert torch.equal(theirs, (torch.from_numpy(ours[0]).float().div(255) - mean) / std)
    assert ours[0].shape == (3, 32, 32)
    assert ours[0].dtype == np.uint8


def test_images_that_exceed_the_limit_are_not_cached(folder):
    shards = ShardSet.open(folder / "A")
    size = sum(rgb_pixels(Image.open(io.BytesIO(pair(number).image))).nbytes for number in range(24))
    assert len(shards) < ESTIMATE_AFTER
    assert load_images(shards, 24, rgb_pixels, size) is not None
    assert load_images(shards, 24, rgb_pixels, size - 1) is None


def test_an_image_too_wide_for_a_random_crop_is_cropped_in_the_center():
    augment = Augment(CONFIG)
    wide = sample_image(5, 90, 60)
    assert len({augment(rgb_pixels(wide), str(number)).tobytes() for number in range(20)}) == 1
    middle = wide.crop((5, 0, 85, 60)).resize((32, 32), Image.Resampling.BICUBIC)
    assert np.array_equal(augment(rgb_pixels(wide), "0"), rgb_pixels(middle).transpose(2, 0, 1))


def test_captions_are_tokenized_once():
    calls: list[list[str]] = []

    def tokenizer(captions: list[str]) -> torch.Tensor:
        calls.append(captions)
        return torch.tensor([[len(caption), ord(caption[0])] for caption in captions])

    tokens = TokenCache(tokenizer)
    assert tokens(["ab", "c", "ab"]).tolist() == [[2, 97], [1, 99], [2, 97]]
    assert tokens(["c", "def"]).tolist() == [[1, 99], [3, 100]]
    assert tokens(["def", "ab"]).tolist() == [[3, 100], [2, 97]]
    assert calls == [["ab", "c"], ["def"]]


def test_an_unreadable_pair_is_decoded_once_over_all_epochs(tmp_path):
    """A shard whose images all became unreadable would otherwise be decoded again for each of its pairs."""
    write_shards(tmp_path, [replace(pair(n), image=b"" if n < 20 else pair(n).image) for n in range(24)], 10)
    shards = ShardSet.open(tmp_path)
    plan = epoch_plan(shards.sizes, 0, 0, 1, 0, 8)
    stream = PairStream(shards, plan, 0, Preprocess(CONFIG), lambda texts: torch.zeros(len(texts), 4))
    reads = []
    sample = stream.sample
    stream.sample = lambda index, *rest: (reads.append(index), sample(index, *rest))[1]
    for epoch in range(2):
        stream.start_at(epoch)
        batches = list(stream)
        assert sum(batch["replaced"] for batch in batches) >= 20
        assert set().union(*(batch["unreadable"] for batch in batches)) == set(range(20))
    unreadable = [index for index in reads if index < 20]
    assert sorted(unreadable) == sorted(set(unreadable))
    assert len(unreadable) == 20


def test_a_resumed_epoch_replaces_its_last_pairs_by_the_same_one(tmp_path):
    """The last pairs cannot be read, so the first of the epoch comes again, also if it was seen before the resume."""
    plan = epoch_plan((6, 6), 0, 0, 1, 0, 2)
    bad = {6 * shard + position for shard, position in np.concatenate(list(plan.parts(0)))[-3:].tolist()}
    write_shards(tmp_path, [replace(pair(n), image=b"") if n in bad else pair(n) for n in range(12)], 6)

    def batches(step: int) -> list[tuple[list[int], int]]:
        stream = PairStream(ShardSet.open(tmp_path), plan, 0, Preprocess(CONFIG), char_tokens)
        stream.start_at(0, step)
        return [(batch["index"].tolist(), batch["replaced"]) for batch in stream]

    undisturbed = batches(0)
    assert [replaced for _, replaced in undisturbed] == [0, 0, 0, 0, 1, 2]
    assert undisturbed[-1][0] == undisturbed[0][0][:1] * 2
    for step in range(plan.steps):
        assert batches(step) == undisturbed[step:]
