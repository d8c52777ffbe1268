"""Grouping by configuration, statistics over seeds, time relative to backprop."""

import math

import pytest
import yaml

from dtp.algorithms import ALGORITHMS
from dtp.algorithms.options import FAMILIES
from dtp.experiments.report.groups import OTHER, add_costs, sections, unsteadiness
from dtp.experiments.report.page import notes_of
from dtp.experiments.report.reading import read_runs, with_defaults
from dtp.experiments.report.words import describe_data, describe_network
from tests.experiments.report.folders import make_run, only_section


def by_label(section):
    return {group.label: group for group in section.groups}


def test_runs_that_differ_in_their_seeds_alone_are_one_group_with_its_deviation(tmp_path):
    for seed, accuracy in enumerate((0.90, 0.92, 0.97)):
        make_run(tmp_path / f"bp{seed}", seed=seed, accuracy=accuracy, log_every=seed + 1, data_dir=f"/here/{seed}")
    make_run(tmp_path / "fa", "fa", accuracy=0.8)
    groups = by_label(only_section(tmp_path))
    assert set(groups) == {"bp", "fa"}
    assert groups["bp"].test.mean == pytest.approx(0.93)
    assert groups["bp"].test.deviation == pytest.approx(0.036055512)
    assert groups["bp"].test.n == 3
    assert groups["fa"].test.deviation is None


def test_other_values_are_another_group_whose_label_says_which(tmp_path):
    make_run(tmp_path / "a", lr=0.1)
    make_run(tmp_path / "b", lr=0.01)
    make_run(tmp_path / "c", "dtp")
    assert set(by_label(only_section(tmp_path))) == {"bp (lr 0.1)", "bp (lr 0.01)", "dtp"}


def test_values_that_were_written_in_two_ways_are_one_group(tmp_path):
    make_run(tmp_path / "a", limit_train_batches="0.5", precision="32")
    # As an earlier version would have saved it.
    config = make_run(tmp_path / "b", seed=1) / "config.yaml"
    options = yaml.safe_load(config.read_text()) | {"limit_train_batches": "5e-1", "precision": "32-true"}
    config.write_text(yaml.safe_dump(options))
    (group,) = only_section(tmp_path).groups
    assert len(group.runs) == 2


def test_runs_on_as_many_devices_are_one_group_however_these_were_asked_for(tmp_path):
    make_run(tmp_path / "a", devices="1", summary={"world_size": 1})
    make_run(tmp_path / "b", devices="auto", seed=1, summary={"world_size": 1})
    # As srun and torchrun start several, without a word in the options.
    make_run(tmp_path / "c", devices="1", summary={"world_size": 2})
    make_run(tmp_path / "d", devices="1", num_nodes=2, seed=1, summary={"world_size": 2})
    groups = by_label(only_section(tmp_path))
    assert {label: len(group.runs) for label, group in groups.items()} == {"bp (devices 1)": 2, "bp (devices 2)": 2}


def test_settings_that_differ_in_much_are_called_by_their_folder(tmp_path):
    for trial in range(2):
        values = {"lr": 0.1 + trial, "momentum": 0.1 * trial, "weight_decay": 0.1 * trial, "lr_min": 0.01 * trial}
        make_run(tmp_path / f"trial-000{trial}", **values)
        make_run(tmp_path / f"wide{trial}" / "seed0", "fa", **values)
    expected = {"bp (trial-0000)", "bp (trial-0001)", "fa (wide0)", "fa (wide1)"}
    assert set(by_label(only_section(tmp_path))) == expected


def test_settings_that_differ_in_three_options_are_called_by_their_values(tmp_path):
    for trial, values in (("a", (0.1, 0.5, 0.0)), ("b", (0.2, 0.0, 0.3))):
        make_run(tmp_path / trial, **dict(zip(("lr", "momentum", "weight_decay"), values, strict=True)))
    expected = {"bp (lr 0.1, momentum 0.5, weight decay 0)", "bp (lr 0.2, momentum 0, weight decay 0.3)"}
    assert set(by_label(only_section(tmp_path))) == expected


def test_settings_in_folders_of_one_name_are_numbered(tmp_path):
    for trial in range(2):
        values = {"lr": 0.1 + trial, "momentum": 0.1 * trial, "weight_decay": 0.1 * trial, "lr_min": 0.01 * trial}
        make_run(tmp_path / f"machine{trial}" / "trial", **values)
    assert set(by_label(only_section(tmp_path))) == {"bp (trial)", "bp (trial) #2"}


def test_runs_made_before_an_option_existed_stay_with_those_made_after(tmp_path):
    old, new = make_run(tmp_path / "old", seed=0), make_run(tmp_path / "new", seed=1)
    config = yaml.safe_load((old / "config.yaml").read_text())
    for option in ("task", "tf32", "momentum"):
        del config[option]
    config["an_option_that_has_gone"] = None
    (old / "config.yaml").write_text(yaml.safe_dump(config))
    (group,) = only_section(tmp_path).groups
    assert [run.folder for run in group.runs] == [old, new]


def test_rules_and_networks_of_the_users_own_need_not_be_here(tmp_path):
    make_run(tmp_path / "a", "my_rule:Rule", accuracy=0.5)
    make_run(tmp_path / "b", model="my_net:Net", seed=1)
    groups = by_label(only_section(tmp_path))
    assert groups["my_rule:Rule"].family == OTHER and groups["my_rule:Rule"].test.mean == 0.5
    assert groups["bp"].network == "my_net:Net"


def test_datasets_and_tasks_are_studies_of_their_own(tmp_path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", data="cifar10")
    make_run(tmp_path / "c", data="imagefolder", data_dir="/x/flowers", image_size=32)
    make_run(tmp_path / "d", data="imagefolder", data_dir="/y/flowers", image_size=32, seed=1)
    make_run(tmp_path / "e", data="imagefolder", data_dir="/y/birds", image_size=32)
    make_run(tmp_path / "f", task="autoencoder", summary={"test_mse": 0.02, "test_accuracy": None})
    found = {
        section.title: [len(group.runs) for group in section.groups] for section in sections(read_runs([tmp_path]))
    }
    assert found == {
        "birds (imagefolder), 32 pixels": [1],
        "cifar10": [1],
        "flowers (imagefolder), 32 pixels": [2],
        "mnist": [1],
        "mnist, autoencoder": [1],
    }


def test_folders_of_one_name_with_other_images_are_datasets_of_their_own(tmp_path):
    for run, place, images in (("a", "/x", "9 images"), ("b", "/y", "9 images"), ("c", "/z", "8 images")):
        folder = make_run(tmp_path / run, data="imagefolder", data_dir=f"{place}/flowers", image_size=32)
        config = folder / "config.yaml"
        config.write_text(f"# --data-dir holds: {images}\n{config.read_text()}")
    found = {s.title: [run.name for run in s.groups[0].runs] for s in sections(read_runs([tmp_path]))}
    assert found == {
        "flowers (imagefolder), 32 pixels, 8 images": ["c"],
        "flowers (imagefolder), 32 pixels, 9 images": ["a", "b"],
    }


def test_images_are_not_named_where_none_of_the_folder_are_known_to_be_others(tmp_path):
    # Earlier versions did not record them.
    for run in ("recorded", "earlier"):
        folder = make_run(tmp_path / run, data="imagefolder", data_dir="/x/flowers", image_size=32)
        if run == "recorded":
            config = folder / "config.yaml"
            config.write_text(f"# --data-dir holds: 9 images\n{config.read_text()}")
    section = only_section(tmp_path)
    assert section.title == "flowers (imagefolder), 32 pixels" and len(section.groups[0].runs) == 2


@pytest.mark.parametrize(("top5", "shown"), [(0.9, True), (0.98, False)])
def test_the_top_five_are_shown_where_they_say_something(tmp_path, top5, shown):
    make_run(tmp_path / "run", summary={"test_top5": top5})
    assert ("top 5, %" in only_section(tmp_path).further) is shown


def test_an_epoch_that_is_cut_short_costs_what_a_whole_one_would(tmp_path):
    make_run(tmp_path / "bp", "bp", seconds=1.0, batches=550)
    make_run(tmp_path / "dtp", "dtp", seconds=1.0, batches=110, limit_train_batches="110")
    group = by_label(only_section(tmp_path))["dtp"]
    assert group.costs["batch"].mean == group.costs["epoch"].mean == pytest.approx(5)
    assert group.notes == ["wall time of epochs of 110 batches against 550 of `bp`"]


def test_runs_without_accuracy_are_judged_by_what_they_have(tmp_path):
    make_run(tmp_path / "a", task="autoencoder", summary={"test_mse": 0.02, "test_accuracy": None})
    make_run(tmp_path / "b", task="clustering", summary={"test_purity": 0.7, "test_accuracy": None})
    make_run(tmp_path / "c", task="autoencoder", data="digits", summary={"test_accuracy": None})
    found = {section.title: section.groups[0] for section in sections(read_runs([tmp_path]))}
    assert found["mnist, autoencoder"].test.mean == 0.02 and not found["mnist, autoencoder"].measure.higher
    assert found["mnist, clustering"].test.mean == 0.7
    assert found["digits, autoencoder"].measure.test == "test_loss"


def test_every_rule_but_those_of_one_layer_or_one_task_belongs_to_a_family_that_there_is():
    named = {entry.name: entry.family for entry in ALGORITHMS.entries.values()}
    assert {rule for rule, family in named.items() if not family} == {"hebb", "delta", "competitive", "dtp-dae"}
    assert set(named.values()) - {""} == set(FAMILIES)


def test_networks_and_datasets_in_words():
    usual = with_defaults({"algo": "bp", "model": "mlp", "data": "mnist", "activation": "tanh", "widths": [256] * 6})
    assert describe_network(usual) == "mlp 6x256 tanh"
    assert describe_network(usual | {"widths": [], "bias": False}) == "mlp one layer tanh no biases"
    assert describe_data(usual | {"pca": 100}) == "mnist, 100 principal components"
    own = usual | {"data": "mine:Photos"}
    assert describe_data(own | {"data_dir": "auto"}) == "mine:Photos"
    assert describe_data(own | {"data_dir": "/x/spring"}) == "spring (mine:Photos)"


# --- epochs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "epochs", "passes"),
    [
        ({"algo": "bp"}, 5, 5),
        ({"algo": "vanilla-dtp", "schedule": "alternating"}, 7, 3),
        ({"algo": "vanilla-dtp", "schedule": "parallel"}, 7, 7),
        ({"algo": "drl", "feedback_warmup_epochs": 2, "extra_feedback_epochs": 1}, 7, 3),
    ],
)
def test_epochs_that_train_feedback_alone_are_not_counted(tmp_path, options, epochs, passes):
    make_run(tmp_path / "run", epochs=epochs, **options)
    (group,) = only_section(tmp_path).groups
    assert group.passes == [passes]
    ends = group.runs[0].ends
    assert list(ends[ends["forward"]]["number"]) == list(range(1, passes + 1))


def test_a_warm_up_in_batches_is_not_counted(tmp_path):
    # Epochs of 550 batches: none of the first trains the forward weights, half of the second, all of the third.
    make_run(tmp_path / "run", epochs=3, algo="drl", feedback_warmup=825, extra_feedback_epochs=0, seconds=2.0)
    (group,) = only_section(tmp_path).groups
    assert group.passes == [1.5]
    ends = group.runs[0].ends
    forward = ends[ends["forward"]]
    assert (list(forward["number"]), list(forward["seconds"])) == ([0.5, 1.5], [4.0, 6.0])


# --- cost -------------------------------------------------------------------------------------------------------------


def test_cost_relative_to_backprop_of_a_batch_an_epoch_and_the_whole_run(tmp_path):
    make_run(tmp_path / "bp", seconds=2)
    make_run(tmp_path / "dtp", "dtp", seconds=20)
    make_run(tmp_path / "alternating", "vanilla-dtp", seconds=3, epochs=8)
    groups = by_label(only_section(tmp_path))
    costs = {name: {kind: round(c.mean, 6) for kind, c in group.costs.items()} for name, group in groups.items()}
    assert costs["bp"] == {"batch": 1, "epoch": 1, "wall": 1}
    assert costs["dtp"] == {"batch": 10, "epoch": 10, "wall": 10}
    # Each epoch of the forward weights has one of the feedback before it.
    assert costs["vanilla-dtp"] == {"batch": 1.5, "epoch": 3, "wall": 3}
    assert groups["dtp"].runs[0].training_seconds == pytest.approx(80)
    assert groups["dtp"].over_seeds("images_per_second").mean == pytest.approx(2750)
    assert groups["dtp"].over_seeds("feedback_share").mean == pytest.approx(0.5)


def test_batches_of_more_images_than_there_are_count_with_those_that_there_are(tmp_path):
    # The rate is of all images that were seen, 100 in each batch.
    make_run(tmp_path / "bp", seconds=2, batch_size=60000, summary={"train_images": 100})
    (run,) = by_label(only_section(tmp_path))["bp"].runs
    assert run.training_seconds == pytest.approx(8) and run.images_per_second == pytest.approx(100 * run.steps / 8)


def test_a_run_that_trained_its_feedback_alone_has_no_time_of_an_epoch(tmp_path):
    make_run(tmp_path / "bp")
    make_run(tmp_path / "drl", "drl", feedback_warmup=10_000, extra_feedback_epochs=0)
    assert set(by_label(only_section(tmp_path))["drl"].costs) == {"batch", "wall"}


def test_wall_time_of_other_numbers_of_epochs_is_said_to_be_so(tmp_path):
    make_run(tmp_path / "bp", epochs=4)
    make_run(tmp_path / "fa", "fa", epochs=8)
    groups = by_label(only_section(tmp_path))
    assert groups["fa"].costs["wall"].mean == pytest.approx(2)
    assert groups["fa"].notes == ["wall time of 8 epochs of forward training against 4 of `bp`"]


def test_networks_of_the_same_sizes_with_another_nonlinearity_are_compared_and_it_is_said(tmp_path):
    make_run(tmp_path / "bp", activation="tanh")
    make_run(tmp_path / "chl", "chl", activation="sigmoid", seconds=12)
    groups = by_label(only_section(tmp_path))
    assert groups["chl"].costs["epoch"].mean == pytest.approx(12)
    assert groups["chl"].notes == ["time against `bp` with activation tanh"]


@pytest.mark.parametrize(
    ("options", "summary", "why"),
    [
        ({"widths": [300]}, {}, "network"),
        ({"model": "square", "widths": [256, 256]}, {}, "network"),
        ({"batch_size": 50}, {}, "batch size"),
        ({"precision": "64"}, {}, "precision"),
        ({}, {"threads": 8}, "threads"),
        ({}, {"device": "Another"}, "device"),
        ({"precision": "64"}, {"device": "Another"}, "precision, device"),
    ],
)
def test_other_work_or_another_machine_is_not_comparable(tmp_path, options, summary, why):
    make_run(tmp_path / "bp")
    make_run(tmp_path / "fa", "fa", summary=summary, **options)
    group = by_label(only_section(tmp_path))["fa"]
    assert group.costs == {}
    assert group.notes == [f"time not comparable: no `bp` run of the same {why}"]


def test_a_run_without_a_rate_of_training_has_no_time(tmp_path):
    make_run(tmp_path / "bp")
    make_run(tmp_path / "fa", "fa", rows=[{"epoch": 3, "step": 2200, "val/accuracy": 0.9}])
    group = by_label(only_section(tmp_path))["fa"]
    assert not {"batch", "epoch"} & set(group.costs)
    assert "time not comparable: no rate of training in the metrics" in group.notes


@pytest.mark.parametrize("kept", [0, 2, 3])
def test_metrics_that_were_cut_off_change_no_time(tmp_path, kept):
    for seed in (0, 1):
        make_run(tmp_path / "bp" / f"seed{seed}", seed=seed)
        make_run(tmp_path / "fa" / f"seed{seed}", "fa", seed=seed, seconds=3)
    for algo in ("bp", "fa"):
        metrics = tmp_path / algo / "seed1" / "metrics.csv"
        # The columns, and ``kept`` of four epochs.
        metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[: 1 + kept]))
    groups = by_label(only_section(tmp_path))
    for algo, ratio in (("bp", 1), ("fa", 3)):
        costs = groups[algo].costs
        assert costs["batch"].values == pytest.approx((ratio,)) and costs["epoch"].values == pytest.approx((ratio,))
        assert costs["wall"].n == 2
        assert groups[algo].notes == [
            "time of a batch of 1 of 2 runs; the metrics of the others do not say all rates of training"
        ]


def test_networks_of_ones_own_are_of_the_same_sizes_where_they_have_as_many_parameters(tmp_path):
    own = {"model": "my_net:Net"}
    make_run(tmp_path / "bp", seconds=1, depth=2, summary={"parameters": 100}, **own)
    make_run(tmp_path / "wide", seconds=9, depth=9, summary={"parameters": 900}, **own)
    make_run(tmp_path / "fa", "fa", seconds=18, depth=9, summary={"parameters": 900}, **own)
    make_run(tmp_path / "dtp", "dtp", seconds=18, depth=5, summary={"parameters": 500}, **own)
    groups = by_label(only_section(tmp_path))
    assert groups["fa"].costs["batch"].mean == pytest.approx(2)
    assert groups["dtp"].costs == {}
    assert groups["dtp"].notes == ["time not comparable: no `bp` run of the same network"]


def test_a_result_that_is_no_number_counts_as_none(tmp_path):
    for seed, accuracy in enumerate((0.9, 0.9, math.nan)):
        make_run(tmp_path / f"seed{seed}", seed=seed, summary={"test_accuracy": accuracy})
    (group,) = only_section(tmp_path).groups
    assert group.test.values == (0.9, 0.9)


def test_without_backprop_nothing_is_comparable(tmp_path):
    make_run(tmp_path / "fa", "fa")
    (group,) = only_section(tmp_path).groups
    assert group.notes == ["time not comparable: no finished `bp` run on these images"]


def test_each_run_is_compared_with_backprop_on_its_own_machine(tmp_path):
    for seed, (device, bp, fa) in enumerate([("slow", 10, 20), ("fast", 1, 3), ("other", None, 100)]):
        if bp:
            make_run(tmp_path / "bp" / device, seed=seed, seconds=bp, summary={"device": device})
        make_run(tmp_path / "fa" / device, "fa", seed=seed, seconds=fa, summary={"device": device})
    group = by_label(only_section(tmp_path))["fa"]
    assert group.costs["batch"].values == pytest.approx((2, 3))
    assert group.notes == ["time of 2 of 3 runs; no `bp` on the device of the others"]


def test_the_backprop_most_like_the_group_is_taken(tmp_path):
    make_run(tmp_path / "elu", activation="elu", seconds=1)
    make_run(tmp_path / "tanh", activation="tanh", seconds=2)
    make_run(tmp_path / "fa", "fa", activation="tanh", seconds=6)
    group = by_label(only_section(tmp_path))["fa"]
    assert group.costs["batch"].mean == pytest.approx(3) and group.notes == []


def test_of_runs_of_one_seed_the_newest_counts(tmp_path):
    make_run(tmp_path / "a", accuracy=0.9, seconds=3, summary={"finished": "2026-02-01T00:00:00+0000"})
    make_run(tmp_path / "b", accuracy=0.5, seconds=1, summary={"finished": "2026-01-01T00:00:00+0000"})
    make_run(tmp_path / "c", accuracy=0.8, seed=1)
    section = only_section(tmp_path)
    (group,) = section.groups
    assert group.test.values == (0.9, 0.8) and len(group.passes) == 2
    assert notes_of(section, group)[0] == "2 runs of seed 0; the newest counts"
    # Times are of runs, whatever their seed.
    assert group.costs["batch"].n == 3


def test_a_newer_run_without_a_result_takes_no_other_ones_place(tmp_path):
    make_run(tmp_path / "a", accuracy=0.9, summary={"finished": "2026-01-01T00:00:00+0000"})
    make_run(tmp_path / "b", summary={"finished": "2026-02-01T00:00:00+0000", "test_accuracy": None})
    (group,) = only_section(tmp_path).groups
    assert group.test.values == (0.9,)


def test_the_newest_run_of_a_seed_is_that_of_the_latest_moment_whatever_the_clock_of_its_machine_shows(tmp_path):
    # Half past nine in Vancouver is half past five in the evening in London.
    make_run(tmp_path / "a", accuracy=0.9, summary={"finished": "2026-02-01T09:30:00-0800"})
    make_run(tmp_path / "b", accuracy=0.5, summary={"finished": "2026-02-01T16:00:00+0000"})
    (group,) = only_section(tmp_path).groups
    assert group.test.values == (0.9,)


def test_unfinished_and_failed_runs_do_not_count_in_results_or_times(tmp_path):
    make_run(tmp_path / "bp" / "0")
    make_run(tmp_path / "bp" / "1", seed=1, finished=False, trained=1, accuracy=0.1)
    make_run(tmp_path / "bp" / "2", seed=2, finished=False, trained=1, accuracy=0.1)
    (tmp_path / "bp" / "2" / "failed.txt").write_text("It diverged.\n")
    (group,) = only_section(tmp_path).groups
    assert group.test.values == (0.95,) and len(group.runs) == 3
    assert group.costs["batch"].n == 1


def test_uneven_times_are_found(tmp_path):
    make_run(tmp_path / "bp" / "0", seconds=1)
    make_run(tmp_path / "bp" / "1", seed=1, seconds=1.1)
    make_run(tmp_path / "fa" / "0", "fa", seconds=1)
    make_run(tmp_path / "fa" / "1", "fa", seed=1, seconds=2.5)
    group, factor = unsteadiness([only_section(tmp_path)])
    assert group.label == "fa" and factor == pytest.approx(2.5)


def test_first_epochs_and_other_machines_are_not_uneven_times(tmp_path):
    rates = [10, 100, 100, 100]
    rows = [{"epoch": e, "step": 550 * (e + 1), "train/images_per_second": rate} for e, rate in enumerate(rates)]
    make_run(tmp_path / "here", rows=rows)
    faster = [row | {"train/images_per_second": 3 * row["train/images_per_second"]} for row in rows]
    make_run(tmp_path / "there", seed=1, rows=faster, summary={"device": "Difference engine"})
    _, factor = unsteadiness([only_section(tmp_path)])
    assert factor == 1


def test_what_is_said_of_whole_runs_that_times_are_of_is_not_said_of_others(tmp_path):
    for folder, epochs in (("real", 4), ("timed", 8)):
        make_run(tmp_path / folder / "bp")
        make_run(tmp_path / folder / "fa", "fa", epochs=epochs, seconds=2)
    real, timed = (sections(read_runs([tmp_path / folder])) for folder in ("real", "timed"))
    add_costs(real, timed)
    assert by_label(timed[0])["fa"].notes == ["wall time of 8 epochs of forward training against 4 of `bp`"]
    group = by_label(real[0])["fa"]
    assert group.notes == [] and group.costs["batch"].mean == pytest.approx(2)


def test_a_section_is_judged_by_what_most_of_its_groups_have(tmp_path):
    make_run(tmp_path / "bp", summary={"test_accuracy": None})
    for algo in ("fa", "kp"):
        make_run(tmp_path / algo, algo)
    section = only_section(tmp_path)
    assert [group.measure.name for group in section.groups] == ["loss", "accuracy", "accuracy"]
    assert section.measure.name == "accuracy"
