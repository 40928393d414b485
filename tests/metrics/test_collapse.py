"""Collapse: which labels have collapsed or stay uniform, and when a warning is given."""

import warnings

import pytest
import torch
from measured_runs import PSI, data, learner, loader, run
from torch import nn
from torch.utils.data import DataLoader

from maxl_l2l import EntropyLabels, Hierarchy, HumanLabels, Metrics, fit
from maxl_l2l.metrics.collapse import Collapse, collapse_of, warn_of_collapse


class TestWatch:
    def test_judges_an_epoch(self):
        hierarchy = Hierarchy([2, 2, 1, 3])
        record = {"use": [99, 1, 98, 2, 50, 1, 0, 0], "relative_label_entropy": 0.5}
        assert collapse_of(record, hierarchy) == Collapse((0,), False)
        assert collapse_of({"relative_label_entropy": 0.995}, hierarchy) == Collapse((), True)
        assert collapse_of({"relative_label_entropy": 0.985}, hierarchy) == Collapse()
        assert collapse_of({}, hierarchy) == Collapse()

    def test_class_of_unsure_labels_or_few_samples_has_not_collapsed(self):
        shares = [0.95, 0.85, None, 0.0]
        record = {"use": [50, 0, 50, 0, 50, 9, 0, 0], "relative_label_entropy_per_class": shares}
        assert collapse_of(record, Hierarchy([2, 2, 1, 3])).single == (1,)

    def test_warns_once_a_streak(self):
        bad, good = {"use": [10, 0]}, {"use": [5, 5]}
        hierarchy = Hierarchy([2])
        warned = []
        records = []
        for record in (bad, bad, good, bad, bad, bad, bad, good, bad, bad, bad):
            records.append(record)
            with warnings.catch_warnings(record=True) as found:
                warnings.simplefilter("always")
                warn_of_collapse(records, hierarchy, 3)
            warned += [len(records)] * len(found)
        assert warned == [6, 11]

    def test_says_which_classes_and_what_to_change(self):
        records = [{"use": [10, 0, 5, 5, 0, 70]}] * 2
        with pytest.warns(RuntimeWarning) as found:
            warn_of_collapse(records, Hierarchy([2, 2, 2]), 2)
        assert str(found[0].message) == (
            "labels have collapsed: primary class 0, 2 has kept to a single sub-class for 2 epochs. "
            "Raise entropy_weight, lower the generator's learning rate, or give such a class fewer sub-classes in psi."
        )

    def test_fit_warns_of_labels_that_stay_uniform_at_the_callers_line(self):
        maxl = learner()
        nn.init.zeros_(maxl.generator.body[2].weight)
        nn.init.zeros_(maxl.generator.body[2].bias)
        frozen = torch.optim.SGD(maxl.generator.parameters(), lr=0.0)
        with pytest.warns(RuntimeWarning, match="labels have stayed uniform for 2 epochs: they say no more") as found:
            fit(maxl, loader(), 4, generator_optimizer=frozen, metrics=Metrics(patience=2), progress=False)
        assert [one.filename for one in found] == [__file__]

    @pytest.mark.parametrize("options", [{"metrics": Metrics(patience=None)}, {"metrics": False}])
    def test_can_be_turned_off(self, options):
        maxl = learner()
        nn.init.zeros_(maxl.generator.body[2].weight)
        frozen = torch.optim.SGD(maxl.generator.parameters(), lr=0.0)
        fit(maxl, loader(), 7, generator_optimizer=frozen, progress=False, **options)

    def test_fixed_labels_are_not_watched(self):
        source = HumanLabels(torch.tensor([0, 2, 5] * 8))
        dataset = source.label(data(), PSI)
        run(learner(), DataLoader(dataset, batch_size=6), 3, source=source, metrics=Metrics(patience=1))

    def test_the_control_is_not_watched_as_its_labels_are_to_be_uniform(self):
        maxl = learner()
        nn.init.zeros_(maxl.generator.body[2].weight)
        frozen = torch.optim.SGD(maxl.generator.parameters(), lr=0.0)
        fit(
            maxl,
            loader(),
            1,
            generator_optimizer=frozen,
            source=EntropyLabels(),
            metrics=Metrics(patience=1),
            progress=False,
        )
