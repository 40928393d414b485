"""CIFAR-100's levels and images: numbers known from elsewhere, crops found by brute force, and data that is wrong."""

import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from examples.cifar100 import data
from examples.cifar100.data import Batches, Images, held_out, load, subset
from examples.cifar100.levels import FINE, PAIRS, level, task
from maxl_l2l import Hierarchy

# CIFAR-100's own coarse label of each fine label, as its files have them.
COARSE = """
4 1 14 8 0 6 7 7 18 3 3 14 9 18 7 11 3 9 7 11 6 11 5 10 7 6 13 15 3 15 0 11 1 10 12 14 16 9 11 5 5 19 8 8 15 13 14 17 18
10 16 4 17 4 2 0 17 4 18 17 10 3 2 12 12 16 12 1 9 19 2 10 0 1 16 12 9 13 15 13 16 19 2 4 6 19 5 5 8 19 18 1 2 15 6 0 17
8 14 13
"""


def made(number=400, seed=0):
    numbers = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (number, 32, 32, 3), generator=numbers, dtype=torch.uint8)
    return Images(pixels, torch.arange(number) % 100)


def test_twenty_classes_are_the_coarse_labels_of_cifar_100():
    assert level(20).tolist() == [int(number) for number in COARSE.split()]


@pytest.mark.parametrize(("primary", "auxiliary"), PAIRS)
def test_each_pair_of_levels_is_a_hierarchy(primary, auxiliary):
    found = task(primary, auxiliary)
    assert len(found.psi) == primary
    assert sum(found.psi) == auxiliary
    Hierarchy(found.psi).check_auxiliary(found.auxiliary, found.primary)
    assert found.primary.unique().tolist() == list(range(primary))
    assert found.auxiliary.unique().tolist() == list(range(auxiliary))
    # The finer level's classes, renamed: two images are together in one if they are in the other.
    same = level(auxiliary)[:, None] == level(auxiliary)
    assert torch.equal(found.auxiliary[:, None] == found.auxiliary, same)


def test_psi_of_the_papers_main_task_is_five_each():
    assert task(20, 100).psi == [5] * 20


def test_psi_of_the_coarsest_pair_is_counted_from_the_levels():
    assert task(3, 10).psi == [5, 1, 4]


@pytest.mark.parametrize(("primary", "auxiliary"), [(100, 20), (20, 20), (5, 100)])
def test_other_pairs_raise(primary, auxiliary):
    with pytest.raises(ValueError, match=r"`primary` and `auxiliary` must be two of the levels 3, 10, 20, 100"):
        task(primary, auxiliary)


def test_test_batches_are_the_images_in_order_normalised():
    images = made()
    batches = list(Batches(images, [images.fine], 150, torch.device("cpu")))
    assert [len(x) for x, _ in batches] == [150, 150, 100]
    x, y = (torch.cat(parts) for parts in zip(*batches))
    expected = (images.pixels.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.2
    torch.testing.assert_close(x, expected)
    assert torch.equal(y, images.fine)
    assert x[:2].is_contiguous(memory_format=torch.channels_last)


def test_training_batches_are_crops_of_the_padded_images_half_of_them_flipped():
    images = made()
    x, index = (
        torch.cat(parts) for parts in zip(*Batches(images, [torch.arange(400)], 64, torch.device("cpu"), seed=3))
    )
    assert index.sort().values.tolist() == list(range(400))
    assert index.tolist() != list(range(400))
    found = torch.stack([place_of(crop, images.pixels[number]) for crop, number in zip(x, index)])
    places, flips = found[:, :2], found[:, 2]
    assert 140 < flips.sum() < 260  # of 400 coins
    assert places.unique(dim=0).shape[0] == 81  # each place of the nine by nine
    assert len(found.unique(dim=0)) > 130  # of 162


def place_of(crop, pixels):
    """Top, left and flip of a crop, found among all of them."""
    padded = F.pad(pixels.permute(2, 0, 1), (4, 4, 4, 4))
    pixels = (crop * 51 + 127.5).round().byte()
    places = [(top, left, flip) for top in range(9) for left in range(9) for flip in (0, 1)]
    for top, left, flip in places:
        window = padded[:, top : top + 32, left : left + 32]
        if torch.equal(window.flip(2) if flip else window, pixels):
            return torch.tensor([top, left, flip])
    raise AssertionError("not a crop of the image")


def test_batches_are_channels_first_in_memory_if_wanted():
    images = made()
    found, expected = (
        next(iter(Batches(images, [], 10, torch.device("cpu"), channels_last))) for channels_last in (False, True)
    )
    assert found[0].is_contiguous()
    assert torch.equal(found[0], expected[0])


def test_holding_out_everything_is_refused():
    with pytest.raises(ValueError, match=r"`held_out` must leave images of each class to train on, found 0\.1 of 1\."):
        held_out(made(100), 0.1, seed=0)


def test_each_pass_draws_anew_and_rewind_goes_back():
    images = made()
    batches = Batches(images, [images.fine], 100, torch.device("cpu"), seed=0)
    first, second = next(iter(batches)), next(iter(batches))
    assert not torch.equal(first[0], second[0])
    batches.rewind()
    assert all(torch.equal(one, other) for one, other in zip(next(iter(batches)), first))


def test_a_pass_depends_on_the_state_of_the_generator_alone():
    images = made()
    batches = Batches(images, [images.fine], 100, torch.device("cpu"), seed=0)
    list(batches)
    state = batches.generator.get_state()
    expected = list(batches)
    other = Batches(images, [images.fine], 100, torch.device("cpu"), seed=9)
    other.generator.set_state(state)
    for one, two in zip(expected, other):
        assert all(torch.equal(a, b) for a, b in zip(one, two))


def test_subset_takes_as_many_of_each_class_by_seed():
    images = made(1000)
    found = subset(images, 3, seed=1)
    assert found.fine.bincount().tolist() == [3] * 100
    assert torch.equal(found.pixels, subset(images, 3, seed=1).pixels)
    assert not torch.equal(found.pixels, subset(images, 3, seed=2).pixels)


def test_held_out_images_are_apart_from_the_rest():
    images = Images(torch.arange(1000).view(-1, 1, 1, 1).expand(-1, 32, 32, 3), torch.arange(1000) % 100)
    rest, kept = held_out(images, 0.2, seed=0)
    assert kept.fine.bincount().tolist() == [2] * 100
    assert rest.fine.bincount().tolist() == [8] * 100
    both = torch.cat([rest.pixels, kept.pixels])[:, 0, 0, 0]
    assert both.sort().values.tolist() == list(range(1000))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two training images of each class and a test image."""
    monkeypatch.setitem(data.PER_CLASS, "train", 2)
    monkeypatch.setitem(data.PER_CLASS, "test", 1)
    pixels = np.random.RandomState(0).randint(256, size=(300, 32, 32, 3)).astype(np.uint8)
    for number in range(300):
        split = tmp_path / "png" / ("train" if number < 200 else "test") / FINE[number % 100]
        split.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[number]).save(split / f"{number:03}.png")
    return tmp_path / "png", pixels


def test_png_files_are_read_class_by_class(folder, tmp_path):
    path, pixels = folder
    train, test = load(path, tmp_path / "cache")
    assert train.fine.tolist() == [number // 2 for number in range(200)]
    assert test.fine.tolist() == list(range(100))
    torch.testing.assert_close(
        train.pixels, torch.from_numpy(pixels[:200]).view(2, 100, 32, 32, 3).transpose(0, 1).flatten(0, 1)
    )
    torch.testing.assert_close(test.pixels, torch.from_numpy(pixels[200:]))


def test_png_files_are_decoded_once(folder, tmp_path, monkeypatch, capsys):
    path, _ = folder
    first = load(path, tmp_path / "cache")
    assert "Decoding 300 images" in capsys.readouterr().out
    monkeypatch.setattr(data, "read_image", None)
    again = load(path, tmp_path / "cache")
    assert all(torch.equal(a, b) for one, other in zip(first, again) for a, b in zip(one, other))
    assert capsys.readouterr().out == ""


def test_an_image_written_over_is_decoded_anew(folder, tmp_path, capsys):
    path, _ = folder
    load(path, tmp_path / "cache")
    changed = next((path / "test" / "apple").iterdir())
    Image.new("RGB", (32, 32), "red").save(changed)
    _, test = load(path, tmp_path / "cache")
    assert test.pixels[0, 5, 5].tolist() == [255, 0, 0]
    assert capsys.readouterr().out.count("Decoding") == 2


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 half of a zip"])
def test_a_broken_cache_is_decoded_anew(folder, tmp_path, content, capsys):
    path, _ = folder
    first = load(path, tmp_path / "cache")
    (cache,) = (tmp_path / "cache").iterdir()
    cache.write_bytes(content)
    again = load(path, tmp_path / "cache")
    assert all(torch.equal(a, b) for one, other in zip(first, again) for a, b in zip(one, other))
    assert f"{cache} can't be read" in capsys.readouterr().out


def test_missing_images_are_named_with_both_ways_to_get_them(folder, tmp_path):
    path, _ = folder
    next((path / "train" / "bear").iterdir()).unlink()
    with pytest.raises(
        ValueError, match=r"must have 2 images in each of 100 classes .*found in bear 1\. Give .*--download"
    ):
        load(path, tmp_path)


def test_a_missing_split_is_named(folder, tmp_path):
    path, _ = folder
    (path / "test").rename(path / "elsewhere")
    with pytest.raises(ValueError, match=r"found in apple 0, aquarium_fish 0, .* and 95 more\."):
        load(path, tmp_path)


def refuse(folder, tmp_path, kind, spoil, reason):
    """Loading fails and names the image that was spoiled."""
    path, _ = folder
    victim = next((path / kind).iterdir())
    spoil(victim)
    with pytest.raises(ValueError, match=reason.format(name=victim.name)):
        load(path, tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n and then nothing", b"plain text"])
def test_a_corrupt_image_is_named(folder, tmp_path, content):
    reason = r"an image that can't be read: .*{name} \(.*\)\. Get it anew\."
    refuse(folder, tmp_path, "train/wolf", lambda image: image.write_bytes(content), reason)


def test_a_truncated_image_is_named(folder, tmp_path):
    def truncate(image):
        image.write_bytes(image.read_bytes()[:-600])

    refuse(folder, tmp_path, "test/worm", truncate, r"can't be read: .*{name}")


def test_an_image_with_a_wrong_checksum_is_named(folder, tmp_path):
    """PIL reads it without an error, perhaps with other pixels."""

    def falsify(image):
        content = bytearray(image.read_bytes())
        place = content.index(b"IEND") - 5  # the last byte of the image data's checksum
        content[place] ^= 1
        image.write_bytes(content)

    refuse(folder, tmp_path, "test/worm", falsify, r"can't be read: .*{name}")


def test_an_image_of_another_size_is_named(folder, tmp_path):
    reason = r"must hold RGB images of 32 x 32, found .*, L of 28 x 28\."
    refuse(folder, tmp_path, "test/worm", Image.new("L", (28, 28)).save, reason)


def test_no_data_gets_both_ways(tmp_path):
    with pytest.raises(ValueError, match=r"`--data` must hold CIFAR-100, found no such folder at .*--download"):
        load(tmp_path / "none", tmp_path)
    with pytest.raises(ValueError, match="found an empty folder or other files"):
        load(tmp_path, tmp_path)


def test_torchvisions_files_are_checked_by_it(tmp_path):
    batches = tmp_path / "cifar-100-python"
    batches.mkdir()
    (batches / "train").write_bytes(pickle.dumps({}))
    with pytest.raises(ValueError, match=r"torchvision says: Dataset not found or corrupted"):
        load(tmp_path, tmp_path)


def test_torchvisions_data_is_taken_as_it_is(tmp_path, monkeypatch):
    """Its own files, made small, and its checksums put aside."""
    pixels = np.random.RandomState(0).randint(256, size=(3, 32, 32, 3)).astype(np.uint8)
    batches = tmp_path / "cifar-100-python"
    batches.mkdir()
    for name, labels in (("train", [3, 99, 0]), ("test", [1, 2, 3])):
        content = {"data": pixels.transpose(0, 3, 1, 2).reshape(3, -1), "fine_labels": labels}
        (batches / name).write_bytes(pickle.dumps(content))
    (batches / "meta").write_bytes(pickle.dumps({"fine_label_names": FINE}))
    monkeypatch.setattr(data.CIFAR100, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)
    train, test = load(tmp_path, tmp_path)
    assert torch.equal(train.pixels, torch.from_numpy(pixels))
    assert (train.fine.tolist(), test.fine.tolist()) == ([3, 99, 0], [1, 2, 3])
