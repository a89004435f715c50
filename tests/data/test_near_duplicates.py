import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dejavu_lit.data.near_duplicates import (
    content_digest,
    count_duplicates,
    exact_groups,
    near_groups,
    perceptual_hash,
)
from tests.data.images import COCO_MINI, encoded, needs_coco, sample_image


def hash_of(data: bytes) -> int | None:
    with Image.open(io.BytesIO(data)) as image:
        return perceptual_hash(image)


def distance_between(left: int | None, right: int | None) -> int:
    assert left is not None
    assert right is not None
    return (left ^ right).bit_count()


def copies(image: Image.Image) -> list[bytes]:
    """The image recompressed, resized and in other formats."""
    width, height = image.size
    return [
        encoded(image, "JPEG", quality=75),
        encoded(image, "JPEG", quality=30),
        encoded(image.resize((width // 2, height // 2)), "JPEG", quality=80),
        encoded(image.resize((256, 256 * height // width), Image.Resampling.BILINEAR), "PNG"),
        encoded(image.resize((width * 2 // 3, height * 2 // 3)), "WEBP", quality=60),
        encoded(image.convert("L"), "JPEG", quality=75),
    ]


def groups_by_all_pairs(exact: np.ndarray, hashes: np.ndarray, hashed: np.ndarray, distance: int) -> list[int]:
    roots = list(range(len(exact)))
    for row in range(len(exact)):
        for peer in range(row + 1, len(exact)):
            near = hashed[row] and hashed[peer] and (int(hashes[row]) ^ int(hashes[peer])).bit_count() <= distance
            if near or exact[row] == exact[peer]:
                low, high = sorted((roots[row], roots[peer]))
                roots = [low if root == high else root for root in roots]
    return roots


@st.composite
def hash_sets(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Hashes around a few centers, so that many pairs are just within or just beyond the distance."""
    distance = draw(st.integers(0, 12))
    centers = draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4))
    hashes = []
    for _ in range(draw(st.integers(1, 40))):
        value = draw(st.sampled_from(centers))
        for bit in draw(st.sets(st.integers(0, 63), max_size=distance + 2)):
            value ^= 1 << bit
        hashes.append(value)
    hashed = draw(st.lists(st.booleans(), min_size=len(hashes), max_size=len(hashes)))
    digests = draw(st.lists(st.integers(0, 50), min_size=len(hashes), max_size=len(hashes)))
    exact = np.array([digests.index(digest) for digest in digests], dtype=np.int64)
    return exact, np.array(hashes, dtype=np.uint64), np.array(hashed), distance


@settings(deadline=None, max_examples=150)
@given(hash_sets())
def test_near_groups_equal_those_from_comparing_all_pairs(case: tuple) -> None:
    assert near_groups(*case)[0].tolist() == groups_by_all_pairs(*case)


def test_near_groups_of_many_random_hashes_find_every_planted_pair() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 20_000, dtype=np.uint64)
    for row in range(0, 10_000, 2):  # exactly 6 bits away, the largest distance that counts
        flips = np.bitwise_or.reduce(np.uint64(1) << rng.choice(64, 6, replace=False).astype(np.uint64))
        hashes[row + 1] = hashes[row] ^ flips
    groups, _ = near_groups(np.arange(20_000), hashes, np.ones(20_000, bool), 6)
    expected = np.arange(20_000)
    expected[1:10_000:2] -= 1
    np.testing.assert_array_equal(groups, expected)


def test_a_chain_is_one_group_with_the_first_row_as_root() -> None:
    hashes = np.array([0b11, 2**40 - 1, 0b1111, 0], dtype=np.uint64)
    assert near_groups(np.arange(4), hashes, np.ones(4, bool), 2)[0].tolist() == [0, 1, 0, 0]
    assert near_groups(np.arange(4), hashes, np.ones(4, bool), 1)[0].tolist() == [0, 1, 2, 3]


def test_exact_groups_compare_all_128_bits() -> None:
    digests = np.array([[5, 1], [5, 2], [4, 1], [5, 1], [5, 2], [5, 1]], dtype=np.uint64)
    assert exact_groups(digests).tolist() == [0, 1, 2, 0, 1, 0]
    assert exact_groups(np.zeros((0, 2), np.uint64)).tolist() == []
    assert not np.array_equal(content_digest(b"a"), content_digest(b"b"))


def test_counts_by_hand() -> None:
    exact = np.array([0, 0, 2, 3, 3, 5])
    groups = np.array([0, 0, 0, 3, 3, 5])  # two equal images and a near one; two equal images; a single one
    assert count_duplicates(exact, groups) == {
        "exact": {"groups": 2, "pairs": 4},
        "near": {"groups": 1, "pairs": 3, "largest": 3},
    }


def test_copies_are_near_and_unrelated_images_far() -> None:
    originals = [sample_image(seed, 320, 240) for seed in range(25)]
    hashes = [hash_of(encoded(image)) for image in originals]
    for image, own_hash in zip(originals, hashes, strict=True):
        assert max(distance_between(own_hash, hash_of(copy)) for copy in copies(image)) <= 6
    assert min(distance_between(a, b) for row, a in enumerate(hashes) for b in hashes[:row]) > 6


def test_brightness_and_contrast_do_not_matter() -> None:
    image = sample_image(1, 320, 240)
    for change in (lambda v: v // 2, lambda v: 60 + v // 2):
        assert distance_between(hash_of(encoded(image)), hash_of(encoded(image.point(change)))) <= 3


def test_images_without_structure_have_no_hash() -> None:
    noise = np.random.default_rng(0).normal(128, 3, (200, 200)).clip(0, 255).astype(np.uint8)
    plain = Image.new("RGB", (90, 90), "red")
    for image in (plain, Image.linear_gradient("L"), Image.fromarray(noise)):
        assert hash_of(encoded(image, "JPEG")) is None
    assert near_groups(np.arange(2), np.zeros(2, np.uint64), np.zeros(2, bool), 6)[0].tolist() == [0, 1]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK", "I;16"])
def test_every_mode_of_pillow_has_a_hash(mode: str) -> None:
    image = sample_image(3, 200, 150)
    converted = image.convert(mode) if mode != "I;16" else Image.fromarray(np.asarray(image.convert("L"), np.uint16))
    converted_hash = hash_of(encoded(converted, "JPEG" if mode == "CMYK" else "PNG"))
    assert mode in ("1", "CMYK") or distance_between(converted_hash, hash_of(encoded(image))) <= 6


@needs_coco
def test_real_photographs() -> None:
    files = sorted(COCO_MINI.glob("*2017/*.jpg"))
    hashes = [hash_of(file.read_bytes()) for file in files]
    assert len(hashes) == 159
    assert min(distance_between(a, b) for row, a in enumerate(hashes) for b in hashes[:row]) > 12
    for file, own_hash in list(zip(files, hashes, strict=True))[::6]:
        assert max(distance_between(own_hash, hash_of(copy)) for copy in copies(Image.open(file).convert("RGB"))) <= 6
