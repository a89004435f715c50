"""What the training sees of the pairs: knobs act on captions and images anew each epoch, whoever reads them; V sees none."""

import hashlib
import io

import numpy as np
import pytest
import torch
from open_clip.transform import image_transform
from PIL import Image

from dejavu_lit.data.module import LoaderSettings, PairDataModule
from dejavu_lit.data.shards import Pair, ShardSet, write_shards
from dejavu_lit.data.stream import FEW, ImageCache, PairStream, TokenCache, pixels
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


def spelled(texts: list[str]) -> torch.Tensor:
    """A tokenizer that can be read back."""
    return torch.tensor([list(text.encode().ljust(60)) for text in texts])


def module(folder, workers: int = 0, cache_mb: int = 0, augment: bool = False, **options) -> PairDataModule:
    knobs = Mitigation(**options.pop("knobs", {}), image_augment=augment)
    pairs = PairDataModule(
        folder=folder,
        side=options.pop("side", "target"),
        batch=4,
        seed=3,
        preprocess=Preprocess(CONFIG),
        tokenizer=spelled,
        mitigation=knobs,
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
    plan = pairs.plan(epoch, 1)
    return seen(
        PairStream(
            pairs.train_set,
            plan,
            0,
            pairs.preprocess,
            spelled,
            pairs.mitigation,
            pairs._words,
            pairs.augment,
        )
    )


def test_without_knobs_images_and_captions_are_the_pairs_own(folder):
    found = seen(module(folder).train_dataloader())
    keys = ShardSet.open(folder / "A").keys()
    assert len(found) == 24
    for place, (image, caption) in found.items():
        own = pair(int(keys[place][1:]))
        assert caption == own.caption
        with Image.open(io.BytesIO(own.image)) as opened:
            assert image == Preprocess(CONFIG)(opened).tobytes()


KNOBS = {"text_mask": 0.3, "text_random": 0.3, "text_shuffle": 0.5, "caption_choice": True, "caption_words": 4}


@pytest.mark.parametrize(("workers", "cache_mb"), [(0, 100), (2, 0), (2, 100)])
def test_the_draws_are_the_same_with_any_workers_and_with_the_images_kept_in_memory(folder, workers, cache_mb):
    plain = seen(module(folder, augment=True, knobs=KNOBS).train_dataloader())
    pairs = module(folder, workers, cache_mb, augment=True, knobs=KNOBS)
    assert (pairs._cache is not None) == (cache_mb > 0)
    assert seen(pairs.train_dataloader()) == plain
    pairs.teardown("fit")


def test_the_draws_change_from_epoch_to_epoch_and_with_the_seed(folder):
    pairs = module(folder, augment=True, knobs=KNOBS)
    first, second = epoch_of(pairs, 0), epoch_of(pairs, 1)
    assert epoch_of(pairs, 0) == first
    assert sum(first[place][0] != second[place][0] for place in first) > 20
    assert sum(first[place][1] != second[place][1] for place in first) > 20
    pairs.seed = 4
    other = epoch_of(pairs, 0)
    assert sum(first[place][0] != other[place][0] for place in first) > 20


def test_v_is_read_as_it_is_whatever_the_knobs(folder):
    knobs = {**KNOBS, "text_mask": 0.9}
    untouched = seen(module(folder).val_dataloader())
    assert seen(module(folder, augment=True, knobs=knobs).val_dataloader()) == untouched
    keys = ShardSet.open(folder / "V").keys()
    assert all(caption == pair(int(keys[place][1:])).caption for place, (_, caption) in untouched.items())


def test_one_of_the_captions_is_chosen_and_data_without_several_is_refused(folder):
    pairs = module(folder, knobs={"caption_choice": True})
    drawn = {epoch_of(pairs, epoch)[0][1] for epoch in range(20)}
    assert drawn == set(pair(int(ShardSet.open(folder / "A").keys(1)[0][1:])).meta["captions"])
    with pytest.raises(UserError, match=r"caption_choice=true needs pairs with several captions"):
        module(folder, side="reference", knobs={"caption_choice": True})


def test_random_words_come_from_the_captions_that_are_trained_on(folder):
    pairs = module(folder, knobs={"text_random": 1.0}, train_size=8)
    keys = ShardSet.open(folder / "A").keys(8)
    own = {word for key in keys for word in pair(int(key[1:])).caption.split()}
    assert set(pairs._words) == own
    drawn = {word for epoch in range(10) for _, caption in epoch_of(pairs, epoch).values() for word in caption.split()}
    assert drawn <= own
    assert len(drawn) > len(own) / 2
    fewer = module(folder, knobs={"text_random": 1.0}, train_size=8, exclude=frozenset(keys[:1]))
    assert keys[0][1:].lstrip("0") not in fewer._words


def test_the_augmentation_is_open_clips_and_leaves_the_generators_alone():
    shown = sample_image(5, 66, 60)
    augment = Augment(CONFIG)
    state = torch.get_rng_state()
    ours = [augment(pixels(shown), f"0/0/k{number}") for number in range(20)]
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(ours[0], augment(pixels(shown), "0/0/k0"))
    assert len({image.tobytes() for image in ours}) > 15
    with torch.random.fork_rng():  # the same generator before open_clip's own transform gives the same image
        torch.manual_seed(int.from_bytes(hashlib.blake2b(b"0/0/k0", digest_size=8).digest(), "big"))
        theirs = image_transform(32, is_train=True)(shown)
    mean, std = (torch.tensor(PREPROCESS[name]).view(3, 1, 1) for name in ("mean", "std"))
    assert torch.equal(theirs, (torch.from_numpy(ours[0]).float().div(255) - mean) / std)
    assert ours[0].shape == (3, 32, 32)
    assert ours[0].dtype == np.uint8


def test_what_does_not_fit_into_memory_is_not_kept(folder):
    shards = ShardSet.open(folder / "A")
    size = sum(pixels(Image.open(io.BytesIO(pair(number).image))).nbytes for number in range(24))
    assert len(shards) < FEW
    assert ImageCache.fill(shards, 24, pixels, size) is not None
    assert ImageCache.fill(shards, 24, pixels, size - 1) is None


def test_an_image_too_wide_for_the_random_crop_is_cropped_in_the_middle():
    augment = Augment(CONFIG)
    wide = sample_image(5, 90, 60)
    assert len({augment(pixels(wide), str(number)).tobytes() for number in range(20)}) == 1
    middle = wide.crop((5, 0, 85, 60)).resize((32, 32), Image.Resampling.BICUBIC)
    assert np.array_equal(augment(pixels(wide), "0"), pixels(middle).transpose(2, 0, 1))


def test_captions_are_tokenized_once():
    asked: list[list[str]] = []

    def tokenizer(captions: list[str]) -> torch.Tensor:
        asked.append(captions)
        return torch.tensor([[len(caption), ord(caption[0])] for caption in captions])

    tokens = TokenCache(tokenizer)
    assert tokens(["ab", "c", "ab"]).tolist() == [[2, 97], [1, 99], [2, 97]]
    assert tokens(["c", "def"]).tolist() == [[1, 99], [3, 100]]
    assert tokens(["def", "ab"]).tolist() == [[3, 100], [2, 97]]
    assert asked == [["ab", "c"], ["def"]]
