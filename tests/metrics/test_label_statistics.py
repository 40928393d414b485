"""Label statistics: by hand, for labels of every kind."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from measured_runs import LABELS, PSI

from maxl_l2l import Hierarchy
from maxl_l2l.metrics.label_statistics import LabelMeter

CPU = torch.device("cpu")


class TestLabelMeter:
    def test_values_by_hand(self):
        meter = LabelMeter(Hierarchy([2, 2]), CPU)
        targets = torch.tensor([[0.5, 0.5, 0, 0], [0.75, 0.25, 0, 0], [0, 0, 0, 1.0], [0, 0, 0.1, 0.9]])
        predicted = torch.tensor([[2.0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 1]])
        meter.add(targets[:3], torch.tensor([0, 0, 1]), predicted[:3])
        meter.add(targets[3:], torch.tensor([1]), predicted[3:])
        found = meter.values()
        single = [math.log(2)] + [-p * math.log(p) - (1 - p) * math.log(1 - p) for p in (0.25, 0.1)]
        mean = [1.25 / 4, 0.75 / 4, 0.1 / 4, 1.9 / 4]
        assert set(found) == LABELS | {"sub_classes"}
        assert found["sub_classes"] == 2
        assert found["auxiliary_accuracy"] == 0.75
        shares = [sum(single[:2]) / 2 / math.log(2), sum(single[2:]) / 2 / math.log(2)]
        assert found["relative_label_entropy_per_class"] == pytest.approx(shares, rel=1e-6)
        assert found["label_entropy"] == pytest.approx(sum(single) / 4, rel=1e-6)
        assert found["relative_label_entropy"] == pytest.approx(sum(single) / 4 / math.log(2), rel=1e-6)
        assert found["mean_label_entropy"] == pytest.approx(-sum(p * math.log(p) for p in mean), rel=1e-6)
        assert found["use"] == [2, 0, 0, 2]
        assert found["sub_classes_per_class"] == [1, 1]

    def test_class_that_is_not_split_has_no_relative_entropy(self):
        meter = LabelMeter(Hierarchy([1, 2]), CPU)
        meter.add(torch.tensor([[1.0, 0, 0], [0, 0.5, 0.5]]), torch.tensor([0, 1]))
        assert meter.values()["relative_label_entropy"] == pytest.approx(1.0)
        meter = LabelMeter(Hierarchy([1, 1]), CPU)
        meter.add(torch.tensor([[1.0, 0]]), torch.tensor([0]))
        assert "relative_label_entropy" not in meter.values()

    def test_weighted_labels_count_as_what_they_are_weights_of(self):
        labels, y = torch.tensor([[0.25, 0.75, 0, 0], [0, 0, 0.5, 0.5]]), torch.tensor([0, 1])
        meters = [LabelMeter(Hierarchy([2, 2]), CPU) for _ in range(2)]
        meters[0].add(labels, y)
        meters[1].add(labels * torch.tensor([[4.0], [0.25]]), y)
        first, second = (meter.values() for meter in meters)
        assert all(first[name] == pytest.approx(second[name]) for name in first)

    def test_classes_are_one_hot_and_dense_labels_are_counted_by_pixel(self):
        indices, y = torch.tensor([[[0, 1], [2, 2]]]), torch.tensor([[[0, 0], [1, 1]]])
        meters = [LabelMeter(Hierarchy([2, 2]), CPU) for _ in range(2)]
        meters[0].add(indices, y, given=torch.tensor([[[0, 1], [2, 2]]]))
        meters[1].add(F.one_hot(indices, 4).movedim(-1, 1).float(), y, given=torch.tensor([[[0, 1], [2, 2]]]))
        found = meters[0].values()
        assert found == meters[1].values()
        assert found["use"] == [1, 1, 2, 0]
        assert found["label_entropy"] == 0
        assert found["purity"] == 1

    @pytest.mark.parametrize(
        "targets",
        [
            torch.zeros(2, dtype=torch.int32),
            torch.rand(2),
            torch.rand(2, 3),
            torch.rand(3, 4),
            torch.zeros(2, 1).long(),
        ],
        ids=["int32", "one-dimensional", "other-width", "other-size", "other-shape"],
    )
    def test_targets_of_another_kind_are_passed_over(self, targets):
        meter = LabelMeter(Hierarchy([2, 2]), CPU)
        meter.add(targets, torch.tensor([0, 1]))
        assert meter.values() == {}

    def test_labels_of_no_mass_count_as_none(self):
        meter = LabelMeter(Hierarchy([2]), CPU)
        meter.add(torch.tensor([[0.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 0]), torch.rand(2, 2), torch.tensor([1, 0]))
        found = meter.values()
        assert found["use"] == [0, 1]
        assert meter.sums["table"].tolist() == [[0, 0], [1, 0]]
        assert found["label_entropy"] == 0

    def test_accuracy_of_nothing_predicted_is_left_out(self):
        meter = LabelMeter(Hierarchy([2]), CPU)
        meter.add(torch.tensor([[0.3, 0.7]]), torch.tensor([0]))
        assert "auxiliary_accuracy" not in meter.values()

    def test_a_table_that_has_grown_too_large_is_given_up(self):
        meter, y = LabelMeter(Hierarchy([2]), CPU), torch.zeros(2, dtype=torch.long)
        meter.add(torch.rand(2, 2), y, given=torch.tensor([0, 1]))
        with pytest.warns(RuntimeWarning, match="it goes up to 9000000, so that it is no label"):
            meter.add(torch.rand(2, 2), y, given=torch.tensor([0, 9_000_000]))
        assert "nmi" not in meter.values()

    def test_without_labels_there_are_no_values(self):
        meter = LabelMeter(Hierarchy([2, 2]), CPU)
        meter.add(None, torch.tensor([0]))
        assert meter.values() == {}

    def test_given_labels_grow_skip_what_is_unknown_and_must_be_classes_of_y(self):
        meter, y = LabelMeter(Hierarchy([2]), CPU), torch.zeros(2, dtype=torch.long)
        targets = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
        meter.add(targets, y, given=torch.tensor([0, -1]))
        meter.add(targets, y, given=torch.tensor([0, 4]))
        meter.add(targets, y, given=torch.tensor([0, 4], dtype=torch.uint8))
        for other in (torch.tensor([0.0, 1.0]), torch.tensor([[0], [1]]), torch.tensor([True, False]), ["a", "b"]):
            meter.add(targets, y, given=other)
        assert meter.sums["table"].tolist() == [[3, 0, 0, 0, 0], [0, 0, 0, 0, 2]]

    def test_state_goes_on(self):
        batches = [(torch.rand(4, 6), torch.randint(0, 3, (4,)), torch.randint(0, 9, (4,))) for _ in range(4)]
        whole, first, second = (LabelMeter(Hierarchy(PSI), CPU) for _ in range(3))
        for number, (targets, y, given) in enumerate(batches):
            whole.add(targets, y, given=given)
            (first if number < 2 else second).add(targets, y, given=given)
            if number == 1:
                second.load_state_dict(copy.deepcopy(first.state_dict()))
        assert second.values() == whole.values()
