"""Agreement of invented classes with given ones: by hand, and by scikit-learn."""

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import normalized_mutual_info_score

import maxl_l2l.metrics.class_agreement
from maxl_l2l import Hierarchy
from maxl_l2l.metrics.class_agreement import agreement


class TestAgreement:
    def test_nmi_is_that_of_scikit_learn(self):
        table = torch.randint(0, 20, (6, 5))
        invented, given = (
            part.repeat_interleave(table.flatten())
            for part in torch.meshgrid(torch.arange(6), torch.arange(5), indexing="ij")
            for part in [part.flatten()]
        )
        expected = normalized_mutual_info_score(invented, given)
        assert agreement(table, Hierarchy([3, 3]))["nmi"] == pytest.approx(expected, rel=1e-9)

    def test_knowing_the_class_alone_is_no_agreement_within_it(self):
        table = torch.zeros(4, 4, dtype=torch.long)
        table[0, :2], table[2, 2:] = 10, 10  # each class keeps to one sub-class of two, with two given labels
        found = agreement(table, Hierarchy([2, 2]))
        assert found["nmi"] == pytest.approx(2 / 3)
        assert found["nmi_within"] == 0
        assert found["purity"] == 0.5

    def test_within_is_weighted_by_samples_and_leaves_out_classes_with_one_given_label(self):
        table = torch.tensor([[3, 0, 0, 0], [0, 3, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]])
        table = F.pad(table, (0, 1))
        table[4, 4] = 50
        assert agreement(table, Hierarchy([2, 2, 1]))["nmi_within"] == pytest.approx(6 / 8)
        assert "nmi_within" not in agreement(table[4:], Hierarchy([1]))
        assert agreement(table[4:], Hierarchy([1]))["nmi"] == 1.0

    def test_purity_is_of_the_best_matching_not_the_greedy_one(self):
        assert agreement(torch.tensor([[5, 4], [4, 0]]), Hierarchy([2]))["purity"] == pytest.approx(8 / 13)

    def test_without_scipy_there_is_no_purity(self, monkeypatch):
        monkeypatch.setattr(maxl_l2l.metrics.class_agreement, "HAS_SCIPY", False)
        assert set(agreement(torch.tensor([[5, 4], [4, 0]]), Hierarchy([2]))) == {"nmi", "nmi_within"}

    def test_nothing_of_nothing(self):
        assert agreement(torch.zeros(2, 3, dtype=torch.long), Hierarchy([2])) == {}
