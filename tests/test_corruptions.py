"""Corruptions: what each is, and that an image gets the same one everywhere."""

import colorsys
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lipdeploy.cli.evaluation_options import CORRUPTION_NAMES
from lipdeploy.corruptions import CORRUPTIONS, SEVERITIES, UNCHANGED, Way, corrupted

RANDOM = ("gaussian_noise", "shot_noise", "impulse_noise", "motion_blur")
IDENTITIES = {
    "gaussian_noise": 0,
    "shot_noise": 1e12,
    "impulse_noise": 0,
    "gaussian_blur": 1e-3,
    "motion_blur": 1e-3,
    "brightness": 0,
    "contrast": 1,
    "pixelate": 1,
}
"""Constants with which nothing is changed; JPEG has none."""


def noise(side: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def run(name: str, pixels: np.ndarray, strength: float, seed: int = 0) -> np.ndarray:
    return CORRUPTIONS[name](pixels, strength, np.random.default_rng(seed))


# what each is


def test_every_corruption_has_a_constant_for_each_severity_and_is_offered() -> None:
    assert tuple(CORRUPTIONS) == CORRUPTION_NAMES
    assert {len(corruption.strengths) for corruption in CORRUPTIONS.values()} == {len(SEVERITIES)}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_severity_raises_the_length_on_average(name: str, sample_images: list[Path]) -> None:
    images = [np.asarray(Image.open(path)) for path in sample_images]
    lengths = []
    for severity in SEVERITIES:
        changes = [
            corrupted(image, Way(name, severity), 0) - image.astype(float) for image in images
        ]
        lengths.append(sum(math.sqrt((change**2).sum()) for change in changes))
    assert lengths[0] > 0
    for index, (smaller, larger) in enumerate(pairwise(lengths)):
        # Their constants of motion blur differ there in what cannot be seen.
        is_same = (name, index) == ("motion_blur", 2)
        assert (larger == smaller) if is_same else larger > smaller


@given(st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_with_the_constant_of_the_identity_nothing_changes(side: int, seed: int) -> None:
    pixels = noise(side, seed)
    assert set(IDENTITIES) | {"jpeg_compression"} == set(CORRUPTIONS)
    for name, strength in IDENTITIES.items():
        np.testing.assert_array_equal(run(name, pixels, strength, seed), pixels)
    assert corrupted(pixels, UNCHANGED, seed) is pixels


@given(st.sampled_from(CORRUPTION_NAMES), st.sampled_from(SEVERITIES), st.integers(4, 20))
def test_results_are_images_of_the_same_size(name: str, severity: int, side: int) -> None:
    result = corrupted(noise(side), Way(name, severity), 0)
    assert (result.dtype, result.shape) == (np.uint8, (side, side, 3))


def test_jpeg_is_what_a_jpeg_file_of_that_quality_holds(
    tmp_path: Path, sample_images: list[Path]
) -> None:
    pixels = np.asarray(Image.open(sample_images[0]))
    for severity, quality in zip(SEVERITIES, (80, 65, 58, 50, 40), strict=True):
        path = tmp_path / f"{quality}.jpg"
        Image.fromarray(pixels).save(path, quality=quality)
        with Image.open(path) as stored:
            assert stored.format == "JPEG"
            found = corrupted(pixels, Way("jpeg_compression", severity), 0)
            np.testing.assert_array_equal(found, np.asarray(stored))


@pytest.mark.parametrize(("side", "deviation"), [(32, 0.8), (64, 0.8), (16, 1.0)])
def test_gaussian_blur_is_a_sum_over_neighbours_and_grows_with_the_image(
    side: int, deviation: float
) -> None:
    pixels, sigma = noise(side), deviation * side / 32
    reach = 4 * math.ceil(sigma)
    padded = np.pad(pixels.astype(float), ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    total, expected = 0.0, np.zeros(pixels.shape)
    for down in range(-reach, reach + 1):
        for right in range(-reach, reach + 1):
            weight = math.exp(-(down**2 + right**2) / (2 * sigma**2))
            rows, columns = reach + down, reach + right
            expected += weight * padded[rows : rows + side, columns : columns + side]
            total += weight
    # Theirs is cut at four standard deviations, this one at most one pixel later.
    found = CORRUPTIONS["gaussian_blur"].apply(pixels, deviation, np.random.default_rng(0))
    assert np.abs(found - expected / total).max() < 0.1


@pytest.mark.parametrize("side", [32, 64])
def test_motion_blur_moves_light_along_one_line_that_grows_with_the_image(side: int) -> None:
    pixels = np.zeros((side, side, 3), dtype=np.uint8)
    pixels[side // 2, side // 2] = 255
    for seed in range(5):
        generator = np.random.default_rng(seed)
        values = CORRUPTIONS["motion_blur"].apply(pixels, 2.0, generator)[..., 0]
        assert values.sum() == pytest.approx(255)
        down, right = np.nonzero(values)
        down, right = side // 2 - down, side // 2 - right
        assert right.max() + down.max() >= 4 * side / 32
        angle = math.radians(np.random.default_rng(seed).uniform(-45, 45))
        off_the_line = right * math.sin(angle) - down * math.cos(angle)
        assert np.abs(off_the_line).max() <= 0.5 * math.sqrt(2)
        assert right.min() == 0


def test_motion_blur_is_that_of_the_script_but_for_one_part_in_40_000() -> None:
    """ImageMagick's kernel has 2 * radius + 1 pixels, of which the first is the pixel itself."""
    pixels = np.zeros((32, 32, 3), dtype=np.uint8)
    pixels[:, -1] = 255
    nearly_level = next(
        seed for seed in range(999) if abs(np.random.default_rng(seed).uniform(-45, 45)) < 0.5
    )
    radii = (6, 6, 6, 8, 9)
    for radius, deviation in zip(radii, CORRUPTIONS["motion_blur"].strengths, strict=True):
        offsets = np.arange(2 * radius + 1)
        kernel = np.exp(-(offsets**2) / (2 * deviation**2))
        generator = np.random.default_rng(nearly_level)
        values = CORRUPTIONS["motion_blur"].apply(pixels, deviation, generator)
        # Beyond the edge the last column goes on, so differences of columns are the weights.
        weights = np.diff(values[16, :, 0] / 255)[::-1][: len(kernel)]
        is_there = weights > 0
        np.testing.assert_allclose(weights[is_there], (kernel / kernel.sum())[is_there], rtol=1e-4)
        assert kernel[~is_there].sum() / kernel.sum() < 1 / 40_000


def test_brightness_adds_to_the_value_of_hue_saturation_and_value() -> None:
    pixels = noise(8)
    pixels[0, 0], pixels[0, 1] = 0, 255
    expected = np.empty(pixels.shape)
    for row, column in np.ndindex(8, 8):
        hue, saturation, value = colorsys.rgb_to_hsv(*(pixels[row, column] / 255))
        brighter = colorsys.hsv_to_rgb(hue, saturation, min(1.0, value + 0.2))
        expected[row, column] = 255 * np.array(brighter)
    np.testing.assert_allclose(
        CORRUPTIONS["brightness"].apply(pixels, 0.2, np.random.default_rng(0)), expected, atol=1e-9
    )


def test_contrast_keeps_the_mean_of_each_colour_and_scales_the_deviation() -> None:
    pixels = noise(16)
    found = CORRUPTIONS["contrast"].apply(pixels, 0.3, np.random.default_rng(0))
    np.testing.assert_allclose(found.mean(axis=(0, 1)), pixels.mean(axis=(0, 1)))
    np.testing.assert_allclose(found.std(axis=(0, 1)), 0.3 * pixels.std(axis=(0, 1)))


def test_pixels_become_the_means_of_their_blocks() -> None:
    """Pillow rounds rows and columns, one after the other."""
    pixels = noise(16)
    means = pixels.reshape(8, 2, 8, 2, 3).mean(axis=(1, 3))
    found = run("pixelate", pixels, 0.5)
    assert np.abs(found - means.repeat(2, axis=0).repeat(2, axis=1)).max() <= 1


def test_noise_has_the_size_that_is_said() -> None:
    grey = np.full((128, 128, 3), 128, dtype=np.uint8)
    change = run("gaussian_noise", grey, 0.06).astype(float) - 128
    assert change.std() == pytest.approx(0.06 * 255, rel=0.02)
    # Before rounding, which moves counts of photons that are 1.02 apart away from their mean here.
    change = CORRUPTIONS["shot_noise"].apply(grey, 250, np.random.default_rng(0)) - 128
    assert change.std() == pytest.approx(math.sqrt(128 * 255 / 250), rel=0.02)
    assert abs(change.mean()) < 0.2
    impulse = run("impulse_noise", grey, 0.07)
    for extreme in (0, 255):
        assert np.mean(impulse == extreme) == pytest.approx(0.035, rel=0.1)
    assert set(np.unique(impulse)) == {0, 128, 255}


# the same image, the same corruption


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_is_corrupted_in_the_same_way_whatever_came_before(name: str) -> None:
    way = Way(name, 3)
    before = corrupted(noise(16), way, 0)
    corrupted(noise(16, 1), way, 0)
    np.testing.assert_array_equal(corrupted(noise(16), way, 0), before)
    is_same = np.array_equal(corrupted(noise(16), way, 1), before)
    assert is_same == (name not in RANDOM)


def test_gaussian_noise_of_a_higher_severity_is_the_same_made_larger() -> None:
    grey = np.full((16, 16, 3), 128, dtype=np.uint8)
    small, large = (
        corrupted(grey, Way("gaussian_noise", severity), 0).astype(float) - 128
        for severity in (1, 3)
    )
    assert np.abs(2 * small - large).max() <= 1.5


def test_impulses_of_a_lower_severity_are_among_those_of_a_higher_one() -> None:
    grey = np.full((16, 16, 3), 128, dtype=np.uint8)
    found = [corrupted(grey, Way("impulse_noise", severity), 0) for severity in SEVERITIES]
    for few, many in pairwise(found):
        hit = few != 128
        assert 0 < hit.sum() < (many != 128).sum()
        np.testing.assert_array_equal(many[hit], few[hit])


def test_photons_are_counted_anew_at_each_severity() -> None:
    grey = np.full((128, 128, 3), 128, dtype=np.uint8)
    few, many = (
        corrupted(grey, Way("shot_noise", severity), 0).ravel().astype(float) for severity in (1, 5)
    )
    assert abs(np.corrcoef(few, many)[0, 1]) < 0.05


def test_two_images_have_different_noise() -> None:
    grey = np.full((16, 16, 3), 128, dtype=np.uint8)
    way = Way("gaussian_noise", 1)
    assert not np.array_equal(corrupted(grey, way, 0) + 1, corrupted(grey + 1, way, 0))
