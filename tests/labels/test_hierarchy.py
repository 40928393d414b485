"""Hierarchy: sizes, blocks, masks, and the checks of labels against them."""

import re

import numpy as np
import pytest
import torch

from maxl_l2l import Hierarchy


@pytest.mark.parametrize(
    ("psi", "blocks"),
    [
        ([2, 3, 1], [range(0, 2), range(2, 5), range(5, 6)]),
        ([1, 1], [range(0, 1), range(1, 2)]),
        ([4], [range(0, 4)]),
    ],
)
def test_blocks_are_consecutive(psi, blocks):
    hierarchy = Hierarchy(psi)
    assert [hierarchy.block(primary) for primary in range(len(psi))] == blocks
    assert (hierarchy.num_primary, hierarchy.num_auxiliary, len(hierarchy)) == (len(psi), sum(psi), len(psi))


@pytest.mark.parametrize(
    "psi",
    [(2, 3), np.array([2, 3]), np.array([2, 3], dtype=np.int8), torch.tensor([2, 3]), [np.int64(2), 3], iter([2, 3])],
    ids=["tuple", "array", "int8-array", "tensor", "mixed", "iterator"],
)
def test_integers_of_any_library_are_sizes(psi):
    hierarchy = Hierarchy(psi)
    assert hierarchy.psi == (2, 3)
    assert {type(size) for size in hierarchy.psi} == {int}


def test_a_list_changed_afterwards_does_not_change_the_hierarchy():
    sizes = [2, 3]
    hierarchy = Hierarchy(sizes)
    sizes[0] = 7
    assert hierarchy.psi == (2, 3)


def test_thousand_classes_are_partitioned_by_their_blocks():
    sizes = torch.randint(1, 6, (1000,), generator=torch.Generator().manual_seed(0)).tolist()
    hierarchy = Hierarchy(sizes)
    owners = hierarchy.primary_of_auxiliary()
    assert owners.bincount(minlength=1000).tolist() == sizes
    assert [c for primary in range(1000) for c in hierarchy.block(primary)] == list(range(hierarchy.num_auxiliary))
    assert all((owners[list(hierarchy.block(primary))] == primary).all() for primary in (0, 1, 499, 999))
    assert (hierarchy.mask(torch.arange(1000)).sum(dim=0) == 1).all()


def test_primary_of_auxiliary_names_the_owner_of_each_class():
    owners = Hierarchy([2, 1, 3]).primary_of_auxiliary()
    assert owners.dtype == torch.int64
    assert owners.tolist() == [0, 0, 1, 2, 2, 2]
    assert Hierarchy([2]).primary_of_auxiliary("meta").device.type == "meta"


def test_mask_marks_the_block_of_each_label():
    mask = Hierarchy([2, 1, 3]).mask(torch.tensor([2, 0, 1]))
    assert mask.dtype == torch.bool
    assert mask.int().tolist() == [[0, 0, 0, 1, 1, 1], [1, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0]]


def test_mask_puts_classes_second_for_dense_labels():
    y = torch.tensor([[[0, 1, 2], [2, 1, 0]]])
    mask = Hierarchy([2, 1, 3]).mask(y)
    assert mask.shape == (1, 6, 2, 3)
    for row, column in np.ndindex(2, 3):
        expected = Hierarchy([2, 1, 3]).mask(y[:, row, column])
        assert torch.equal(mask[:, :, row, column], expected)


def test_an_empty_batch_has_an_empty_mask():
    assert Hierarchy([2, 3]).mask(torch.empty(0, dtype=torch.long)).shape == (0, 5)


def test_hierarchies_are_equal_by_their_sizes():
    assert Hierarchy([2, 3]) == Hierarchy((2, 3))
    assert hash(Hierarchy([2, 3])) == hash(Hierarchy((2, 3)))
    assert Hierarchy([2, 3]) != Hierarchy([3, 2])
    assert Hierarchy([2, 3]) != [2, 3]


def test_of_keeps_a_hierarchy_and_converts_sizes():
    hierarchy = Hierarchy([2, 3])
    assert Hierarchy.of(hierarchy) is hierarchy
    assert Hierarchy.of([2, 3]) == hierarchy


def test_repr_is_the_call_that_makes_an_equal_one():
    assert repr(Hierarchy((2, 3))) == "Hierarchy([2, 3])"


@pytest.mark.parametrize("psi", [5, None, "55", b"55", torch.tensor(5), np.array(5)], ids=repr)
def test_psi_that_is_no_sequence_raises(psi):
    with pytest.raises(TypeError, match=r"`psi` must be a list of integers.*found .*write psi=\[5\] \* 20"):
        Hierarchy(psi)


def test_empty_psi_raises():
    with pytest.raises(ValueError, match="`psi` must have an entry for each primary class, found an empty list"):
        Hierarchy([])


@pytest.mark.parametrize(
    ("entry", "found"),
    [(2.0, "2.0 (float)"), ("2", "'2' (str)"), (True, "True (bool)"), (None, "None (NoneType)"), ([2], "[2] (list)")],
    ids=repr,
)
def test_entry_of_psi_that_is_no_integer_raises(entry, found):
    with pytest.raises(TypeError, match=re.escape(f"`psi` must hold integers, found {found} at position 1. Each")):
        Hierarchy([3, entry])


@pytest.mark.parametrize("psi", [np.array([2.0, 3.0]), torch.tensor([2.0, 3.0])], ids=["array", "tensor"])
def test_array_of_floats_as_psi_raises(psi):
    with pytest.raises(TypeError, match=r"`psi` must hold integers, found .* at position 0"):
        Hierarchy(psi)


@pytest.mark.parametrize("size", [0, -2])
def test_size_below_one_raises(size):
    with pytest.raises(ValueError, match=f"`psi` must hold integers >= 1, found {size} at position 2. Use 1 for"):
        Hierarchy([3, 1, size])


@pytest.mark.parametrize("primary", [-1, 2])
def test_block_of_unknown_class_raises(primary):
    with pytest.raises(ValueError, match=rf"`primary` must be a class in 0\.\.1, found {primary}"):
        Hierarchy([2, 3]).block(primary)


@pytest.mark.parametrize("method", ["mask", "check_labels"])
@pytest.mark.parametrize(
    ("y", "found"),
    [
        ([0, 1], "list"),
        (np.array([0, 1]), "ndarray"),
        (torch.tensor([0, 1], dtype=torch.int32), "torch.int32"),
        (torch.tensor([0.0, 1.0]), "torch.float32"),
        (torch.tensor([True]), "torch.bool"),
    ],
    ids=["list", "array", "int32", "float", "bool"],
)
def test_labels_of_another_kind_raise(method, y, found):
    with pytest.raises(TypeError, match=rf"`y` must be an int64 tensor of primary class indices, found {found}\. Con"):
        getattr(Hierarchy([2, 3]), method)(y)


@pytest.mark.parametrize("method", ["mask", "check_labels"])
@pytest.mark.parametrize(("labels", "found"), [([0, 2], 2), ([-1, 0], -1), ([-100, 9], -100)])
def test_labels_out_of_range_raise(method, labels, found):
    with pytest.raises(ValueError, match=rf"`y` must hold primary class indices in 0\.\.1, found {found}\. Check"):
        getattr(Hierarchy([2, 3]), method)(torch.tensor(labels))


def test_check_labels_accepts_any_shape_and_names_the_argument():
    hierarchy = Hierarchy([2, 3])
    for shape in [(), (0,), (4,), (2, 3, 3)]:
        hierarchy.check_labels(torch.ones(shape, dtype=torch.long))
    with pytest.raises(ValueError, match="`target` must hold"):
        hierarchy.check_labels(torch.tensor([2]), "target")


def test_check_auxiliary_accepts_exactly_the_labels_inside_the_mask():
    hierarchy = Hierarchy([2, 1, 3])
    for primary in range(3):
        y = torch.tensor([primary])
        for label, inside in enumerate(hierarchy.mask(y)[0].tolist()):
            if inside:
                hierarchy.check_auxiliary(torch.tensor([label]), y)
            else:
                with pytest.raises(ValueError, match="must lie in the block"):
                    hierarchy.check_auxiliary(torch.tensor([label]), y)


def test_check_auxiliary_names_the_first_stray_label():
    y = torch.tensor([[0, 1], [2, 1]])
    labels = torch.tensor([[1, 2], [2, 0]])
    expected = r"`fine` must lie in the block .* found label 2 at position 2, where y is 2 and the block is 3\.\.5\."
    with pytest.raises(ValueError, match=expected):
        Hierarchy([2, 1, 3]).check_auxiliary(labels, y, "fine")


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        ([0, 2], TypeError, "`labels` must be an int64 tensor of auxiliary class indices, found list"),
        (torch.tensor([0, 5]), ValueError, r"`labels` must hold auxiliary class indices in 0\.\.4, found 5"),
        (torch.tensor([[0, 2]]), ValueError, r"`labels` must have the shape of `y`, \[2\], found \[1, 2\]"),
    ],
    ids=["kind", "range", "shape"],
)
def test_check_auxiliary_refuses_labels_that_do_not_fit(labels, error, message):
    with pytest.raises(error, match=message):
        Hierarchy([2, 3]).check_auxiliary(labels, torch.tensor([0, 1]))


def test_check_auxiliary_checks_y_too():
    with pytest.raises(ValueError, match=r"`y` must hold primary class indices in 0\.\.1, found 2"):
        Hierarchy([2, 3]).check_auxiliary(torch.tensor([0]), torch.tensor([2]))
