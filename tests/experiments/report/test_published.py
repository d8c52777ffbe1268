"""Published figures: that the file is right, that they match what they should and nothing else, and what is said."""

import dataclasses

import pytest

from dtp.algorithms import ALGORITHMS
from dtp.cli.config import find_preset, preset_choices
from dtp.data import DATA
from dtp.experiments.report.groups import sections
from dtp.experiments.report.published import differences, is_network, matches, nearest, published
from dtp.experiments.report.reading import read_runs, with_defaults
from dtp.models import MODELS
from tests.experiments.report.folders import make_run

BARTUNOV = {"widths": [256] * 6, "activation": "tanh"}


def group_of(folder, *args, **options):
    make_run(folder / "run", *args, **options)
    (section,) = sections(read_runs([folder]))
    (group,) = section.groups
    return group


# --- the file ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "figure", published(), ids=lambda f: f"{f.rule}-{f.model}-{f.data}-{f.accuracy}-{f.source[:4]}"
)
def test_rules_networks_options_and_presets_exist(figure):
    options = ALGORITHMS.resolve(figure.rule).load_options()
    assert set(figure.options) <= {field.name for field in dataclasses.fields(options)}
    if figure.network is not None:
        fields = {field.name for field in dataclasses.fields(MODELS.resolve(figure.model).load_options())}
        assert set(figure.network) <= fields
    assert figure.data in (*DATA.names(), "imagenet")
    assert 0 < figure.accuracy < 100
    assert set(figure.budget) == {"epochs", "train_images", "batch_size", "selection"}
    if figure.preset:
        preset = find_preset(figure.preset)
        assert preset is not None
        named, origin = preset_choices(figure.preset), preset.origin
        assert (named["algo"], named["model"]) == (figure.rule, figure.model)
        options = with_defaults({**named, **preset.values})
        # Where --model cannot make theirs, the preset says so of its own.
        assert is_network(figure, options) or figure.network is None and "with another" in origin
        assert all(options[name] == value for name, value in figure.options.items())
        # Presets say in a comment what was published with them, as printed: errors or accuracies.
        printed = {f"{figure.accuracy:.4g}", f"{100 - figure.accuracy:.4g}", f"{100 - figure.accuracy:.2f}"}
        assert any(number in origin for number in printed)


def test_no_two_figures_of_a_source_stand_for_the_same_experiment():
    keys = [(f.source, f.rule, f.data, f.model, str(f.options), f.described, f.top, f.pretrained) for f in published()]
    assert len(keys) == len(set(keys)) > 100


# --- matches ----------------------------------------------------------------------------------------------------------


def test_the_published_experiment_is_matched_with_its_difference(tmp_path):
    group = group_of(tmp_path, "bp", accuracy=0.975, **BARTUNOV)
    (match,) = matches(group)
    assert match.figure.source.startswith("Bartunov et al. 2018")
    assert match.figure.accuracy == pytest.approx(98.52) and match.difference == pytest.approx(-1.02)
    assert nearest(group) == []


@pytest.mark.parametrize("schedule", ["alternating", "parallel"])
def test_the_schedule_decides_which_figure_it_is(tmp_path, schedule):
    (match,) = matches(group_of(tmp_path, "vanilla-dtp", schedule=schedule, **BARTUNOV))
    assert match.figure.accuracy == pytest.approx({"alternating": 98.17, "parallel": 97.14}[schedule])


@pytest.mark.parametrize(
    "options",
    [
        {"widths": [256, 256]},
        {"activation": "elu"},
        {"bias": False, "widths": [256] * 7},
        {"standardise": "hidden"},
        {"data": "fashion-mnist"},
        {"data": "kmnist"},
        {"pca": 100},
        {"init_weights": "runs/other"},
        {"task": "autoencoder"},
        {"model": "square"},
    ],
)
def test_another_network_other_images_or_another_task_is_no_match(tmp_path, options):
    assert matches(group_of(tmp_path, "bp", **(BARTUNOV | options))) == []


def test_nearest_figures_are_of_the_same_rule_images_and_kind_of_network(tmp_path):
    found = nearest(group_of(tmp_path, "fa", widths=[256, 256], activation="tanh"))
    assert {figure.described for figure in found} == {"mlp 6x256 tanh", "mlp 5x256 tanh no biases"}
    assert all(figure.rule == "fa" and figure.data == "mnist" for figure in found)


def test_an_unfinished_run_matches_nothing(tmp_path):
    group = group_of(tmp_path, "bp", finished=False, trained=1, **BARTUNOV)
    assert matches(group) == [] == nearest(group)


def test_top_five_figures_are_compared_with_top_five(tmp_path):
    group = group_of(tmp_path, "bp", model="vgg", data="imagenet32", accuracy=0.3, summary={"test_top5": 0.6})
    (match,) = matches(group)
    assert match.figure.top == 5 and match.difference == pytest.approx(60 - 61.3)


def test_weights_trained_before_are_matched_with_those_alone(tmp_path):
    options = {"widths": [1000], "activation": "sigmoid"}
    assert matches(group_of(tmp_path / "a", "bp", **options)) == []
    (match,) = matches(group_of(tmp_path / "b", "bp", init_weights="runs/other", **options))
    assert match.figure.accuracy == pytest.approx(98.65)


# --- what is not the same ---------------------------------------------------------------------------------------------


def notes_of(folder, *args, preset="bp_mlp_mnist_bartunov", **options):
    values = {name: value for name, value in find_preset(preset).values.items() if name != "max_epochs"}
    group = group_of(folder, *args, **(values | options))
    (match,) = matches(group)
    return list(match.notes)


def test_the_published_experiment_itself_differs_in_data_and_selection_alone(tmp_path):
    assert notes_of(tmp_path, "bp", epochs=500) == [
        "ours 55,000 training images, theirs 60,000",
        "tested weights: ours best on validation, theirs the best test result of all epochs",
    ]


def test_a_smaller_budget_is_said_to_be_one(tmp_path):
    notes = notes_of(tmp_path, "bp", epochs=10, limit_train_batches="20", max_steps=5500, lr=0.1, precision="32")
    assert "ours 10 epochs, theirs 500" in notes
    assert "ours limited to --limit-train-batches 20 of an epoch" in notes
    assert "ours stopped after 5500 batches" in notes
    assert "other values than bp_mlp_mnist_bartunov: lr 0.1 for 0.000152" in notes


def test_another_precision_is_said(tmp_path):
    notes = notes_of(tmp_path, "bp", precision="bf16-mixed")
    assert "other values than bp_mlp_mnist_bartunov: precision bf16-mixed for 32" in notes


def test_epochs_of_alternating_phases_are_counted_in_passes_of_the_forward_weights(tmp_path):
    preset = "vanilla-dtp_mlp_mnist_bartunov-alternating"
    assert "ours 10 epochs, theirs 500" in notes_of(tmp_path / "a", "vanilla-dtp", epochs=20, preset=preset)
    assert not any("epochs, " in note for note in notes_of(tmp_path / "b", "vanilla-dtp", epochs=1000, preset=preset))


def test_other_batches_and_last_weights_are_said(tmp_path):
    summary = {"tested_weights": "last", "train_images": 50000}
    notes = notes_of(tmp_path, "bp", preset="bp_mlp_mnist_lee", epochs=100, batch_size=128, summary=summary)
    assert notes == ["ours batches of 128, theirs of 100", "tested weights: ours the last, theirs not stated"]


@pytest.mark.parametrize(
    ("folder", "sizes", "said"),
    [
        ("cifar10-jpeg", (45000, 5000, 10000), "ours CIFAR-10 recompressed as JPEG, theirs the original"),
        ("cifar10", (45000, 5000, 10000), "perhaps recompressed, theirs the original"),
        ("cifar10-jpeg", (4000, 1000, 10000), None),
        ("cifar100", (45000, 5000, 10000), None),
        ("flowers", (45000, 5000, 10000), None),
    ],
)
def test_class_folders_are_taken_for_cifar10_where_name_and_numbers_say_so(tmp_path, folder, sizes, said):
    names = ("train_images", "val_images", "test_images")
    options = {"model": "vgg", "data": "imagefolder", "data_dir": f"/somewhere/{folder}", "image_size": 32}
    group = group_of(tmp_path, "bp", summary=dict(zip(names, sizes, strict=True)), **options)
    if said is None:
        assert matches(group) == []
    else:
        (match,) = matches(group)
        assert any(said in note for note in match.notes)


def test_one_value_for_all_layers_is_no_difference(tmp_path):
    preset = "vanilla-dtp_mlp_mnist_lee"
    noise = find_preset(preset).values["noise"]
    same = notes_of(tmp_path / "a", "vanilla-dtp", preset=preset, epochs=200, noise=noise * 6)
    other = notes_of(tmp_path / "b", "vanilla-dtp", preset=preset, epochs=200, noise=[*noise * 5, 0.1])
    assert not any("other values" in note for note in same)
    assert any("other values than vanilla-dtp_mlp_mnist_lee: noise" in note for note in other)


def test_differences_name_what_only_the_source_knows(tmp_path):
    group = group_of(tmp_path, "dtp", widths=[256] * 5, activation="tanh", bias=False)
    (match,) = matches(group)
    assert differences(group, match.figure) == list(match.notes)
    assert any("no fair reference" in note for note in match.notes)
