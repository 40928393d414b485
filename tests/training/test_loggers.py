"""Loggers: what TensorBoard and Lightning's get, and from which rank."""

import pytest
from measured_runs import learner, loader, run

from maxl_l2l.training.loggers import Loggers, scalars


class Recorder:
    """What a Lightning logger is asked to log."""

    def __init__(self):
        self.logged, self.saved = [], 0

    def log_metrics(self, metrics, step=None):
        self.logged.append((step, metrics))

    def save(self):
        self.saved += 1


class TestLoggers:
    def test_steps_in_turn_and_epochs_by_steps_taken(self):
        recorder = Recorder()
        history = run(learner(), loader(), metrics=True, logger=recorder, log_every=3)
        steps = [step for step, found in recorder.logged if "step/primary_loss" in found]
        epochs = [(step, found) for step, found in recorder.logged if "epoch" in found]
        assert steps == [3, 6]
        assert [step for step, _ in epochs] == [4, 8]
        assert set(recorder.logged[0][1]) == {
            f"step/{name}"
            for name in ("primary_loss", "auxiliary_loss", "meta_loss", "regularizer", "hypergradient_norm")
        }
        assert epochs[1][1] == scalars(history.epochs[1])
        assert recorder.saved == 2

    def test_records_are_single_numbers(self):
        record = {"epoch": 1, "primary_loss": 0.5, "use": [3, 4, 5], "sub_classes_per_class": [1, 2]}
        expected = {"epoch": 1, "primary_loss": 0.5, "sub_classes_per_class/0": 1, "sub_classes_per_class/1": 2}
        assert scalars(record) == expected

    def test_tensorboard_reads_them_back(self, tmp_path):
        pytest.importorskip("tensorboard")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(tmp_path) as writer:
            history = run(learner(), loader(), metrics=True, logger=[writer, Recorder()], log_every=1)
        read = EventAccumulator(str(tmp_path))
        read.Reload()
        found = read.Scalars("label_entropy")
        assert [event.step for event in found] == [4, 8]
        assert [event.value for event in found] == pytest.approx(history["label_entropy"], rel=1e-6)
        assert len(read.Scalars("step/meta_loss")) == 8

    def test_lightnings_own_logger_takes_them(self, tmp_path):
        logger = pytest.importorskip("lightning.pytorch.loggers").CSVLogger(tmp_path)
        run(learner(), loader(), metrics=True, logger=logger)
        text = next(tmp_path.rglob("metrics.csv")).read_text()
        assert "label_entropy" in text.splitlines()[0]
        assert len(text.splitlines()) == 3

    def test_logger_that_raises_is_left_out_and_training_goes_on(self, tmp_path):
        class Full(Recorder):
            def log_metrics(self, metrics, step=None):
                raise OSError(28, "No space left on device")

        recorder = Recorder()
        with pytest.warns(
            RuntimeWarning, match=r"`logger` Full raised OSError\(28, .* is left out from now on"
        ) as found:
            history = run(learner(), loader(), logger=[Full(), recorder], log_every=1)
        assert len(found) == 1
        assert len(history) == 2
        assert len(recorder.logged) == 10

    def test_steps_go_on_after_a_resume(self, tmp_path):
        recorder, options = Recorder(), {"checkpoint": tmp_path / "run.pt", "resume": True}
        run(learner(), loader(), 1, **options)
        run(learner(), loader(), 2, logger=recorder, log_every=3, **options)
        assert [step for step, _ in recorder.logged] == [6, 8]

    def test_an_epoch_is_written_at_once(self):
        class Writer:
            added = flushed = 0

            def add_scalar(self, name, value, step):
                self.added += 1

            def flush(self):
                self.flushed += 1

        writer = Writer()
        run(learner(), loader(), logger=writer)
        assert writer.flushed == 2
        assert writer.added > 10

    def test_none_is_silent(self):
        Loggers(None, 1).epoch(1, {"epoch": 1})


def logged_by(rank):
    """What a rank logs; its first logger raises."""
    maxl = learner()
    maxl.distribute()
    recorder = Recorder()
    run(maxl, [(x[rank::2], y[rank::2]) for x, y in loader()], logger=recorder, log_every=1)
    return len(recorder.logged)


def test_rank_0_alone_logs(pool):
    assert pool.run(logged_by) == [10, 0]
