"""The callback that measures alignment during training."""

import csv
import math

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from dtp.algorithms import BP, DTP
from dtp.algorithms.options import AlgorithmOptions, DTPOptions
from dtp.diagnostics.callback import AlignmentCallback
from dtp.errors import UserError
from dtp.models import MLP, Network
from dtp.models.options import MLPOptions
from dtp.run.loggers import MetricsCSV
from tests.distributed.ranks import Shares, batches_of, train_on_ranks

pytestmark = pytest.mark.drawn

BATCHES = 3


def small_network() -> Network:
    torch.manual_seed(0)
    return MLP(MLPOptions(widths=[8, 7]), (1, 4, 4), 4)


def loader(shuffle: bool) -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(8 * BATCHES, 1, 4, 4, generator=generator)
    labels = torch.randint(4, (8 * BATCHES,), generator=generator)
    return DataLoader(TensorDataset(images, labels), batch_size=8, shuffle=shuffle, generator=generator)


def train(folder, algorithm, epochs=4, every=2, callbacks=None, loggers=None, **options):
    if callbacks is None:
        callbacks = [AlignmentCallback(folder, every)]
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        logger=[MetricsCSV(folder)] if loggers is None else loggers,
        callbacks=callbacks,
        default_root_dir=folder,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=2,
        **options,
    )
    trainer.fit(algorithm, loader(shuffle=True), loader(shuffle=False))
    return algorithm


def measurements(folder) -> list[dict[str, float]]:
    """Rows of the CSV with alignment: their epoch, batch and angles and distances."""
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    kept = ("epoch", "step", "update_", "feedback_")
    found = [{name: float(cell) for name, cell in row.items() if cell and name.startswith(kept)} for row in rows]
    return [row for row in found if any("layer" in name for name in row)]


def test_all_layers_are_measured_at_the_start_and_at_the_last_batch_of_every_second_epoch(tmp_path):
    train(tmp_path, DTP(small_network(), DTPOptions(feedback_iterations=[2])), epochs=5, every=2)
    rows = measurements(tmp_path)
    assert [(row["epoch"], row["step"]) for row in rows] == [(0, 0), (1, 2 * BATCHES), (3, 4 * BATCHES)]
    updates = {f"update_{what}/layer{n}" for what in ("angle", "distance") for n in (1, 2, 3)}
    feedback = {f"feedback_{what}/layer{n}" for what in ("angle", "distance") for n in (2, 3)}
    for row in rows:
        assert set(row) == {"epoch", "step"} | updates | feedback
        assert all(math.isfinite(value) for value in row.values())


@pytest.mark.parametrize("every", [0, -1, 1.5])
def test_epochs_between_measurements_are_whole_and_above_0(every):
    with pytest.raises(UserError, match="expected every to be a whole number above 0"):
        AlignmentCallback(every=every)


def test_a_folder_that_is_none_is_told():
    with pytest.raises(UserError, match="Expected a path, found int"):
        AlignmentCallback(5)  # pyright: ignore[reportArgumentType]


def test_a_rule_without_feedback_is_measured_against_backprop_alone(tmp_path):
    train(tmp_path, BP(small_network()), epochs=1, every=1)
    _, row = measurements(tmp_path)
    assert not any(name.startswith("feedback") for name in row)
    assert [row[f"update_angle/layer{n}"] for n in (1, 2, 3)] == pytest.approx([0, 0, 0], abs=1e-4)


def test_the_measured_feedback_angle_is_that_of_the_weights_after_the_epoch(tmp_path):
    options = DTPOptions(feedback_iterations=[0], lr=1e-30, lr_min=0.0, feedback_init="symmetric")
    train(tmp_path, DTP(small_network(), options), epochs=1, every=1)
    _, row = measurements(tmp_path)
    assert row["feedback_angle/layer2"] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("epochs, every", [(2, 1), (1, 5)], ids=["measured", "too short to measure"])
def test_the_figure_is_there_at_the_end(tmp_path, epochs, every):
    train(tmp_path, BP(small_network()), epochs=epochs, every=every)
    assert (tmp_path / "training.png").read_bytes().startswith(b"\x89PNG")


def test_the_figure_is_given_to_loggers_that_take_images(tmp_path):
    class Images(MetricsCSV):
        given = []

        def log_image(self, key, images):
            self.given.append((key, images))

    train(tmp_path, BP(small_network()), epochs=1, every=1, loggers=[Images(tmp_path)])
    assert Images.given == [("training", [str(tmp_path / "training.png")])]


def plain_trainer(folder, callback, epochs: int, **options) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        callbacks=[callback],
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def test_without_metrics_on_disk_the_figure_shows_what_this_process_measured(tmp_path):
    """A folder of its own for the figure, beside another one of the logger's."""
    callback = AlignmentCallback(tmp_path / "figures")
    plain_trainer(tmp_path, callback, 1).fit(BP(small_network()), loader(shuffle=True))
    assert (tmp_path / "figures" / "training.png").exists()
    assert list(callback.state_dict()["metrics"]["update_angle/layer1"]) == [0, BATCHES]


def test_a_second_training_is_measured_and_drawn_by_itself(tmp_path):
    callback, figure = AlignmentCallback(), tmp_path / "training.png"
    plain_trainer(tmp_path, callback, 3).fit(BP(small_network()), loader(shuffle=True))
    figure.unlink()
    plain_trainer(tmp_path, callback, 1).fit(BP(small_network()), loader(shuffle=True))
    assert figure.exists()
    assert list(callback.state_dict()["metrics"]["update_angle/layer1"]) == [0, BATCHES]


def probe_accuracies(callback: AlignmentCallback) -> dict[str, dict[int, float]]:
    return {name: found for name, found in callback.state_dict()["metrics"].items() if name.startswith("probe")}


def test_probes_are_tested_on_the_validation_of_the_epoch_alone(tmp_path):
    """Not on what was looked at before the training."""
    found = []
    for others in (False, True):
        callback, rule = AlignmentCallback(probes=True), BP(small_network())
        trainer = plain_trainer(tmp_path, callback, 1)
        if others:
            elsewhere = TensorDataset(torch.randn(16, 1, 4, 4), torch.randint(4, (16,)))
            trainer.validate(rule, DataLoader(elsewhere, batch_size=8), verbose=False)
        trainer.fit(rule, loader(shuffle=True), loader(shuffle=False))
        found.append(probe_accuracies(callback))
    assert found[0] and found[0] == found[1]


def test_probes_are_not_fitted_to_the_rest_of_an_epoch(tmp_path):
    """Of a training that goes on within it: one batch might have a single class, and all other runs have seen more."""
    path = tmp_path / "within.ckpt"

    class Saving(pl.Callback):
        def on_train_batch_end(self, trainer, *args) -> None:
            if trainer.global_step == 2 * BATCHES - 1:
                trainer.save_checkpoint(path)

    trainer = plain_trainer(tmp_path, AlignmentCallback(probes=True), 2)
    trainer.callbacks.append(Saving())
    trainer.fit(BP(small_network()), loader(shuffle=True), loader(shuffle=False))
    callback = AlignmentCallback(probes=True)
    trainer = plain_trainer(tmp_path, callback, 3)
    with pytest.warns(UserWarning, match="linear probes of this epoch are left out"):
        trainer.fit(BP(small_network()), loader(shuffle=True), loader(shuffle=False), ckpt_path=path)
    assert 2 * BATCHES not in probe_accuracies(callback)["probe_accuracy/layer0"]
    assert 3 * BATCHES in probe_accuracies(callback)["probe_accuracy/layer0"]
    # The checkpoint was saved within the second epoch, and had what was measured before.
    assert list(callback.state_dict()["metrics"]["update_angle/layer1"]) == [BATCHES * epoch for epoch in range(4)]


def test_every_second_epoch_has_probes_of_no_more_images_than_were_asked_for(tmp_path, monkeypatch):
    """To a batch, of 8 here."""
    held = []

    def probes(rule, train, val, images):
        held.append((len(train), len(val), images))
        return {}

    monkeypatch.setattr("dtp.diagnostics.callback.linear_probes", probes)
    callback = AlignmentCallback(every=2, probes=True, probe_images=16)
    plain_trainer(tmp_path, callback, 4).fit(BP(small_network()), loader(shuffle=True), loader(shuffle=False))
    assert held == [(2, 2, 16)] * 2


def test_a_figure_that_cannot_be_written_costs_no_training(tmp_path, monkeypatch):
    def full(*args):
        raise OSError("no room")

    monkeypatch.setattr("dtp.diagnostics.callback.draw_metrics", full)
    trainer = plain_trainer(tmp_path, AlignmentCallback(), 1)
    with pytest.warns(UserWarning, match="training.png was not drawn: no room"):
        trainer.fit(BP(small_network()), loader(shuffle=True))
    assert trainer.state.finished


def test_epochs_without_validation_have_no_values_of_one(tmp_path):
    callback, rule = AlignmentCallback(), BP(small_network())
    trainer = plain_trainer(tmp_path, callback, 5, check_val_every_n_epoch=2)
    trainer.fit(rule, loader(shuffle=True), loader(shuffle=False))
    trainer.validate(rule, dataloaders=loader(shuffle=False), verbose=False)
    metrics = callback.state_dict()["metrics"]
    assert list(metrics["val/loss"]) == list(metrics["val/accuracy"]) == [2 * BATCHES, 4 * BATCHES]
    assert list(metrics["train/loss"]) == [BATCHES * epoch for epoch in range(1, 6)]


def test_several_devices_end_together_where_lightning_says_the_folder(tmp_path):
    def ended(trainer) -> str:
        trainer._default_root_dir = str(tmp_path)
        trainer.callbacks.append(AlignmentCallback())
        network = small_network()
        rank = trainer.strategy.global_rank
        trainer.fit(BP(network), DataLoader(Shares(batches_of(network), rank, 2), batch_size=None))
        return trainer.state.status

    assert train_on_ranks(ended, tmp_path, ranks=2) == ["finished", "finished"]
    assert (tmp_path / "training.png").exists()


def test_a_run_that_ends_within_an_epoch_is_not_measured(tmp_path):
    callbacks = [AlignmentCallback(tmp_path, probes=True)]
    train(tmp_path, BP(small_network()), epochs=5, callbacks=callbacks, max_steps=BATCHES + 1)
    assert [row["step"] for row in measurements(tmp_path)] == [0, BATCHES]


@pytest.mark.parametrize("rule, options", [(DTP, DTPOptions(feedback_iterations=[2])), (BP, AlgorithmOptions())])
def test_training_gives_the_same_weights_bit_for_bit_with_and_without_the_callback(tmp_path, rule, options):
    measured = train(tmp_path, rule(small_network(), options), epochs=2, every=1)
    plain = train(tmp_path, rule(small_network(), options), epochs=2, callbacks=[])
    for a, b in zip(measured.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)
