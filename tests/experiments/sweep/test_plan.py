"""Sweep files: what they stand for, and the mistakes that they may hold."""

from contextlib import nullcontext
from pathlib import Path

import pytest

from dtp.errors import UserError
from dtp.experiments.sweep.plan import SWEEPS, Part, read_sweep, require_metrics, sweep_path
from tests.experiments.sweep.helpers import TINY, sweep_file, sweep_of


def test_settings_are_every_combination_of_variants_and_grid(tmp_path):
    sweep = sweep_of(tmp_path)
    assert (sweep.name, sweep.title, sweep.origin) == ("tiny", "Tiny", "From nowhere; shows nothing.")
    assert [point.name for point in sweep.points] == [
        "dtp, widths 8",
        "dtp, widths 2 x 8",
        "bp, widths 8",
        "bp, widths 2 x 8",
    ]
    assert sweep.points[1].options == {
        "data": "digits",
        "model": "mlp",
        "max_epochs": 2,
        "lr_schedule": "constant",
        "algo": "vanilla-dtp",
        "widths": [8, 8],
    }


def test_runs_have_folders_of_their_own_and_come_seed_by_seed(tmp_path):
    jobs = sweep_of(tmp_path).jobs(Path("out"), {"max_epochs": 1})
    assert [seed for _, seed in jobs] == [0] * 4 + [1] * 4
    folders = [str(job.folder) for job in jobs.values()]
    assert folders[1] == "out/dtp,widths=8+8/seed0" and len(set(folders)) == 8
    job = jobs["bp, widths 8", 1]
    assert job.options["max_epochs"] == 1 and job.options["seed"] == 1
    assert job.config().model.widths == [8]


def test_later_parts_beat_earlier_ones(tmp_path):
    text = "base: {lr: 1, beta: 1, momentum: 0.1}\nvariants: {a: {lr: 2, beta: 2}}\ngrid: {lr: [3]}\n"
    (point,) = sweep_of(tmp_path, text).points
    assert point.options == {"lr": 3, "beta": 2, "momentum": 0.1}
    (job,) = sweep_of(tmp_path, text).jobs(Path("out"), {"beta": "4"}).values()
    assert job.options == {"lr": 3, "beta": "4", "momentum": 0.1, "seed": 0}


def test_a_sweep_of_one_run(tmp_path):
    (point,) = sweep_of(tmp_path, "base: {algo: bp}").points
    assert (point.name, point.folder, point.options) == ("all", "all", {"algo": "bp"})


def test_the_figure_is_a_part_or_several(tmp_path):
    assert sweep_of(tmp_path, "base: {algo: bp}").figure == (Part(),)
    one = sweep_of(tmp_path, "grid: {lr: [0.1, 1]}\nfigure: {kind: values, x: lr, metric: [a/b, c/d], range: [0, 1]}")
    assert one.figure == (Part("values", ("a/b", "c/d"), x="lr", range=(0, 1)),)
    assert [part.kind for part in sweep_of(tmp_path).figure] == ["curves", "values", "final"]


def test_values_of_one_depth_hide_nothing_where_each_has_a_panel_of_its_own(tmp_path):
    grid = "grid: {widths: [[8, 8], [16, 16]]}\n"
    (part,) = sweep_of(tmp_path, f"{grid}figure: {{kind: values, x: depth, panels: widths}}").figure
    assert (part.x, part.panels) == ("depth", "widths")


@pytest.mark.parametrize(
    "text, words",
    [
        ("- a", "expected a mapping"),
        ("", "expected a mapping with some of title, base"),
        ("base: [", "is not valid YAML"),
        ("variants: {a: {lr: 1}, b: {lr: 2},\n  a: {lr: 3}}", "'a' stands there twice, again in line 2"),
        ("base: {max-epochs: 1, max_epochs: 2}", "base, max_epochs: expected once, found with dashes and"),
        (
            "variants: {on: {tf32: true}, off: {}}",
            "variants: expected names, found True, which YAML reads in on and yes",
        ),
        ("variant: {a: {}}", "unknown part 'variant'; did you mean variants?"),
        ("base: 3", "base: expected lines of the form 'name: value', found 3"),
        ("base: {seed: 3}", "base: expected no 'seed'; give seeds as a list"),
        ("variants: {a: {run-dir: x}}", "expected no 'run_dir'"),
        ("grid: {lr: 0.1}", "grid, lr: expected a list of values, found 0.1"),
        ("base: {lr: null}", "base, lr: expected a value, found none"),
        ("variants: {a: {lr: }}", "variants, a, lr: expected a value, found none"),
        ("grid: {lr: [0.1, null]}", "grid, lr: expected a list of values, found [0.1, None]"),
        ("grid: {lr: []}", "grid, lr: expected a list of values"),
        ("variants: {a: {init_weights: ''}}", "variants, a, init_weights: expected a value, found an empty text"),
        ("grid: {init_weights: ['', DIR]}", "grid, init_weights: expected a value, found an empty text"),
        ("grid: {lr: [0.1, 0.2, 0.1]}", "grid, lr: expected different values, found [0.1, 0.2, 0.1]"),
        ("seeds: 3", "seeds: expected a list of whole numbers from 0 to 4294967295, found 3"),
        ("seeds: [0.5]", "seeds: expected a list of whole numbers"),
        ("seeds: [0, -3]", "seeds: expected a list of whole numbers from 0 to 4294967295, found [0, -3]"),
        ("seeds: [4294967296]", "seeds: expected a list of whole numbers from 0 to 4294967295, found [4294967296]"),
        ("seeds: [1, 1]", "seeds: expected each number once"),
        ("variants: {a b: {lr: 1}, a-b: {lr: 2}}", "would share the folder 'a-b'"),
        ("figure: {kind: curve}", "figure, kind: expected curves, values, final; found 'curve'"),
        ("figure: {knd: curves}", "figure: unknown 'knd'; did you mean kind?"),
        ("figure: {metric: accuracy}", "figure, metric: expected columns of metrics.csv"),
        ("figure: {kind: values}", "figure, x: expected none for kind values; found 'none'"),
        ("grid: {lr: [1, 2]}\nfigure: {kind: values, x: depth}", "figure, x: expected lr; found 'depth'"),
        ("grid: {lr: [1, 2]}\nfigure: {panels: variant}", "figure, panels: expected lr; found 'variant'"),
        (
            "grid: {optimizer: [sgd, adam]}\nfigure: {kind: values, x: optimizer}",
            "figure, x: expected numbers for optimizer, found 'sgd'; give another option of grid.",
        ),
        (
            "grid: {widths: [8, 16]}\nfigure: {kind: values, x: depth}",
            "figure, x: expected lists for depth, found 8; give another option of grid.",
        ),
        ("figure: {range: [1, 0]}", "figure, range: expected two numbers, the smaller first"),
        ("figure: {range: ['0', '1']}", "figure, range: expected two numbers, the smaller first, found ['0', '1']"),
        ("seeds: [true]", "seeds: expected a list of whole numbers from 0 to "),
        ("figure: {against: hours}", "figure, against: expected epochs, batches"),
        (
            "grid: {widths: [[8], [8, 8], [16, 16]]}\nfigure: {kind: values, x: depth}",
            "figure, x: expected values of widths that differ in depth, found [8, 8] and [16, 16], of which one would "
            "hide the other; give another option of grid.",
        ),
        ("grid: {lr: [1, 2]}\nfigure: {x: lr}", "figure, x: expected none for kind curves; found 'lr'"),
    ],
)
def test_mistakes_are_one_sentence_that_names_the_file(tmp_path, text, words):
    with pytest.raises(UserError) as error:
        read_sweep(sweep_file(tmp_path, text + "\n"))
    message = str(error.value)
    assert words in message and str(tmp_path / "tiny.yaml") in message and "\n" not in message


@pytest.mark.parametrize(
    "metric, tasks, hint",
    [
        ("test/acuracy", ["classification"], "test/accuracy"),
        ("tset/accuracy", ["classification"], "test/accuracy"),
        ("train/acuracy_epoch", ["classification"], "train/accuracy_epoch"),
        ("val/accuracy", ["autoencoder"], ""),
        ("val/accuracy", ["clustering"], "val/purity"),
        ("updat_angle/layer3", ["classification"], "update_angle/layer1"),
    ],
)
def test_a_metric_that_no_run_can_have_is_told(metric, tasks, hint):
    with pytest.raises(UserError, match=f"^file: figure, metric: expected .*, found {metric}.*{hint}") as error:
        require_metrics(Path("file"), (Part(metric=("train/loss", metric)),), tasks)
    assert not hint or str(error.value).endswith(f"; did you mean {hint}?")


@pytest.mark.parametrize("variant", ["..", ".", "x" * 300])
def test_a_variant_that_names_no_folder_is_refused(tmp_path, variant):
    with pytest.raises(UserError, match="expected variants and values that make the name of a folder"):
        sweep_of(tmp_path, f"variants: {{{variant!r}: {{}}, other: {{lr: 1}}}}\n")


@pytest.mark.parametrize(
    ("option", "values", "same"),
    [
        ("lr", "[0.1, 1e-1]", True),
        ("lr", "[0.1, '0.10']", True),
        ("lr", "[1, 1.0]", True),
        ("widths", "[[8], ['8']]", True),
        ("limit_train_batches", "['0.5', 5e-1]", True),
        ("limit_train_batches", "[1, 1.0]", False),
        ("precision", "[32, 32-true]", True),
        ("capture", "[no, 'no']", True),
        ("tf32", "[no, 'no']", True),
        ("tf32", "[yes, no]", False),
        ("optimizer", "[sgd, adam]", False),
    ],
)
def test_a_value_of_the_grid_that_is_written_in_two_ways_is_one(tmp_path, option, values, same):
    refused = pytest.raises(UserError, match="expected different values") if same else nullcontext()
    with refused:
        sweep_of(tmp_path, f"grid: {{{option}: {values}}}\n")


def test_a_bare_no_is_that_word_where_it_is_one_of_several(tmp_path):
    first, second = sweep_of(tmp_path, "variants: {a: {data-on-device: no}}\ngrid: {capture: [no, auto]}\n").points
    assert (first.name, first.folder) == ("a, capture no", "a,capture=no") and first.options["data_on_device"] == "no"
    assert second.values == {"capture": "auto"}
    assert [p.folder for p in sweep_of(tmp_path, "grid: {tf32: [no, yes]}\n").points] == ["tf32=False", "tf32=True"]


def test_variants_that_write_a_value_in_two_ways_are_one(tmp_path):
    sweep = sweep_of(tmp_path, "variants: {a: {lr: 0.1}, b: {lr: '1e-1'}}\n")
    with pytest.raises(UserError, match="found 'a' and 'b' the same"):
        sweep.jobs(tmp_path)


def test_a_sweep_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("dtp.experiments.sweep.plan.MOST", 4)
    assert len(sweep_of(tmp_path).points) == 4
    monkeypatch.undo()
    grid = "".join(f"  {name}: [{', '.join(map(str, range(1000)))}]\n" for name in ("lr", "beta", "momentum"))
    with pytest.raises(UserError, match="expected at most 10000 settings, found 1000000000"):
        sweep_of(tmp_path, f"grid:\n{grid}")


@pytest.mark.parametrize("variant", ["sweep.yaml", "results.json", "results.md", "tiny.png"])
def test_a_variant_called_like_a_file_of_the_sweep_is_refused(tmp_path, variant):
    with pytest.raises(UserError, match=f"found '{variant}'; give it another name"):
        sweep_of(tmp_path, f"variants: {{{variant}: {{}}, other: {{lr: 1}}}}\n")


def test_a_value_that_begins_as_an_option_does_is_refused(tmp_path):
    (job, *_) = sweep_of(tmp_path, "base: {widths: [8, --download]}\n").jobs(tmp_path).values()
    with pytest.raises(UserError, match="widths: expected a value, found '--download'"):
        job.config()


def test_a_class_that_the_file_alone_names_is_asked_about(tmp_path):
    sweep = sweep_of(tmp_path, "base: {algo: 'mine:Own'}\nvariants: {a: {lr: 1.0}, b: {lr: 2.0}}\n")
    with pytest.raises(UserError, match="names the class mine:Own, a program.*--trust"):
        sweep.jobs(tmp_path)
    for extra in ({"trust": []}, {"algo": "mine:Own"}, {"algo": "bp"}):
        assert len(sweep.jobs(tmp_path, extra)) == 2
    with pytest.raises(UserError, match="expected no 'trust'; it belongs on the command line"):
        sweep_of(tmp_path, "base: {trust: true}\n")


def test_settings_that_a_command_makes_the_same_are_refused(tmp_path):
    sweep = sweep_of(tmp_path)
    with pytest.raises(UserError, match="found 'dtp, widths 8' and 'dtp, widths 2 x 8' the same; leave options out"):
        sweep.jobs(Path("out"), {"widths": "3"})
    assert len(sweep.jobs(Path("out"), {"lr": "3"})) == 8


def test_a_sweep_is_a_file_or_the_name_of_one_of_ours(tmp_path):
    assert sweep_path("ghawade-depth") == SWEEPS / "ghawade-depth.yaml"
    mine = sweep_file(tmp_path, TINY)
    assert sweep_path(str(mine)) == mine
    with pytest.raises(UserError, match="no such sweep; did you mean ghawade-depth?"):
        sweep_path("ghawade-dept")


@pytest.mark.parametrize("path", sorted(SWEEPS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_setting_of_ours_is_a_configuration(path, tmp_path):
    sweep = read_sweep(path)
    assert sweep.origin and sweep.title != path.stem
    jobs = sweep.jobs(tmp_path)
    for point in sweep.points:
        config = jobs[point.name, sweep.seeds[0]].config()
        for option, value in point.values.items():
            assert config.as_dict()[option] in (value, [value])


def test_the_report_of_ghawade_and_anand_is_there():
    swept = {
        "depth": {"widths": [[200] * n for n in (1, 2, 4, 8)]},
        "width": {"widths": [[20], [100], [250], [500]]},
        "noise": {"noise": [0.0, 0.1, 1.0]},
        "alpha": {"widths": [[200], [1000]], "beta": [0.01, 0.1, 1.0, 10.0]},
        "activations": {"activation": ["tanh", "relu", "leaky-relu", "sigmoid"]},
    }
    for name, grid in swept.items():
        for file in (f"ghawade-{name}", *([f"ghawade-{name}-cifar10"] if name in ("alpha", "activations") else [])):
            points = read_sweep(SWEEPS / f"{file}.yaml").points
            for option, values in grid.items():
                assert [v for v in values if any(p.values[option] == v for p in points)] == values
            for point in points:
                assert (point.options["optimizer"], point.options["lr"]) == ("adam", 3e-4)
                assert point.options["data"] == ("cifar10" if "cifar10" in file else "mnist")
                assert point.options["algo"] in ("vanilla-dtp", "bp")
    pairs = {
        (p.options["optimizer"], p.options.get("feedback_optimizer"))
        for p in read_sweep(SWEEPS / "ghawade-optimizers.yaml").points
    }
    both = ("adam", "rmsprop")
    assert pairs == {(a, b) for a in both for b in both} | {(a, None) for a in both}
