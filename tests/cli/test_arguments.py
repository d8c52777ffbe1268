"""The command line: priorities, user's own classes, help, and mistakes told in one sentence."""

import dataclasses
import importlib
import itertools
import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from dtp.algorithms import ALGORITHMS
from dtp.cli.arguments import _ELSEWHERE, REGISTRIES, _parser_of, parse
from dtp.cli.config import RunOptions, as_arguments, find_preset, preset_names, read_yaml
from dtp.data import DATA
from dtp.errors import UserError
from dtp.experiments.jobs import Job
from dtp.models import MODELS
from dtp.run.folder import differing_options, saved_options
from tests.experiments.report.folders import make_run

ROOT = Path(__file__).parent.parent.parent


def words(text):
    return text.split()


@pytest.mark.parametrize(
    ("option", "ways"),
    [
        ("limit-train-batches", ("0.5", "0.50", "5e-1")),
        ("limit-train-batches", ("7", "07")),
        ("limit-val-batches", ("1.0", "1.00")),
        ("precision", ("32", "32-true")),
    ],
)
def test_a_text_that_can_be_written_in_several_ways_is_saved_in_one(option, ways):
    saved = [saved_options(parse([f"--{option}", way])) for way in ways]
    assert saved == [saved[0]] * len(ways) and saved[0][option.replace("-", "_")] == ways[0]
    # Of a run of an earlier version, which has saved what was typed.
    for way in ways:
        assert not differing_options(saved[0] | {option.replace("-", "_"): way}, parse([f"--{option}", ways[0]]))


def test_a_count_of_one_batch_is_no_whole_epoch():
    one, whole = (parse(["--limit-train-batches", limit]).run.limit_train_batches for limit in ("1", "1.0"))
    assert (one, whole) == ("1", "1.0")


def test_published_experiment_needs_no_further_option():
    config = parse(words("--algo dtp --model vgg --data imagenet32"))
    assert config.algo.feedback_iterations == [25, 35, 40, 60, 25]
    assert config.algo.noise == [0.4, 0.4, 0.2, 0.2, 0.08]
    assert config.algo.feedback_lr == [1e-4, 3.5e-4, 8e-3, 8e-3, 0.18]
    assert (config.algo.beta, config.algo.lr, config.algo.weight_decay, config.algo.momentum) == (0.7, 0.01, 1e-4, 0.9)
    assert (config.algo.lr_schedule, config.algo.lr_period, config.run.max_epochs) == ("cosine", 85, 90)
    assert (config.data.batch_size, config.algo.routing, config.model.activation) == (256, "noisy", "elu")
    assert config.model.channels == [128, 128, 256, 256, 512]
    assert "Ernoult" in config.origins[0] and "dtp_vgg_imagenet32" in config.origins[0]


def test_command_line_beats_file_beats_preset(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("lr: 0.2\nbeta: 0.5\n")
    arguments = ["--algo", "dtp", "--model", "vgg", "--data", "cifar10"]
    assert parse(arguments).algo.lr == 0.05
    assert parse([*arguments, "--config", str(file)]).algo.lr == 0.2
    config = parse([*arguments, "--config", str(file), "--lr", "0.3"])
    assert (config.algo.lr, config.algo.beta, config.algo.momentum) == (0.3, 0.5, 0.9)


def test_file_may_choose_rule_network_and_data_and_the_preset_follows(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("algo: dtp\nmodel: vgg\ndata: cifar10\nmax-epochs: 3\n")
    config = parse(["--config", str(file)])
    assert (config.run.algo, config.run.model, config.run.data, config.run.max_epochs) == ("dtp", "vgg", "cifar10", 3)
    assert config.algo.feedback_iterations == [20, 30, 35, 55, 20]
    assert parse(["--config", str(file), "--data", "cifar100"]).run.data == "cifar100"


def test_name_of_a_preset_is_a_config():
    config = parse(words("--model vgg --data imagefolder --config dtp_vgg_cifar10"))
    assert config.run.data == "imagefolder" and config.algo.noise == [0.4, 0.4, 0.2, 0.2, 0.08]


def test_a_folder_of_runs_that_is_called_as_a_preset_is_not_taken_for_it(tmp_path, monkeypatch):
    expected = parse(["--config", "bp_mlp_mnist"])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bp_mlp_mnist").mkdir()
    assert (expected.run.algo, expected.run.data) == ("bp", "mnist")
    assert parse(["--config", "bp_mlp_mnist"]).as_dict() == expected.as_dict()


def test_yes_and_no_are_words_in_a_file_too(tmp_path):
    (tmp_path / "words.yaml").write_text("capture: no\ndata_on_device: yes\nfeedback_tracking: no\ntf32: no\n")
    config = parse(["--config", str(tmp_path / "words.yaml")])
    assert (config.run.capture, config.data.data_on_device, config.algo.feedback_tracking) == ("no", "yes", "no")
    assert config.run.tf32 is False and saved_options(config)["capture"] == "no"
    assert parse(as_arguments({"data_on_device": True})).data.data_on_device == "yes"
    with pytest.raises(UserError, match="--capture: expected one of auto, no; found 'yes'"):
        parse(as_arguments({"capture": True}))


@pytest.mark.parametrize("spelling", ["--max-epochs", "--max_epochs"])
def test_dashes_and_underscores_mean_the_same(spelling):
    assert parse([spelling, "7"]).run.max_epochs == 7
    assert parse([f"{spelling}=7"]).run.max_epochs == 7


def test_a_configuration_shares_nothing_with_the_next_of_the_same_choices():
    first = parse(words("--algo dfc --model vgg"))
    first.algo.noise.append(9.0), first.model.channels.clear()
    again = parse(words("--algo dfc --model vgg"))
    assert again.algo.noise == [0.01] and again.model.channels == [128, 128, 256, 256, 512]


def test_a_class_of_the_users_own_that_changes_its_options_does_so_for_each_configuration_once(tmp_path, monkeypatch):
    (tmp_path / "changing.py").write_text(
        "from dataclasses import dataclass, field\n"
        "from dtp.algorithms import BP\n"
        "class Rule(BP):\n"
        "    @dataclass\n"
        "    class Options(BP.Options):\n"
        "        rates: list[float] = field(default_factory=lambda: [0.5], metadata={'varies': 'start'})\n"
        "        def __post_init__(self):\n"
        "            self.rates.append(1.0)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for _ in range(2):
        assert parse(["--algo", "changing:Rule"]).algo.rates == [0.5, 1.0]


def test_threads_may_parse_the_same_choices_at_the_same_time():
    _parser_of.cache_clear()
    together = threading.Barrier(4)

    def one(seed):
        together.wait()
        return parse(words(f"--algo dfc --seed {seed}")).run.seed

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(one, range(4))) == [0, 1, 2, 3]


OPTIONS_THAT_SCRIPTS_RELY_ON = words(
    "algo model data data-dir config max-epochs max-steps batch-size seed devices num-nodes strategy accelerator "
    "precision run-dir resume logger limit-train-batches limit-val-batches num-workers download"
)


def test_options_that_scripts_rely_on_exist_for_every_choice_and_every_option_is_described(capsys):
    for registry in (ALGORITHMS, MODELS, DATA):
        for name in registry.names():
            with pytest.raises(SystemExit):
                parse([f"--{registry.flag}", name, "--help"])
            text = capsys.readouterr().out
            assert all(f"  --{option} " in text for option in OPTIONS_THAT_SCRIPTS_RELY_ON)
            lines = text.splitlines()
            options = [i for i, line in enumerate(lines) if line.startswith("  --")]
            assert len(options) > 40
            undescribed = [lines[i] for i in options if not re.match(r" {6}[A-Z]\w+.{15}", lines[i + 1])]
            assert not undescribed


def test_help_shows_the_values_that_the_preset_gives(capsys):
    with pytest.raises(SystemExit):
        parse(words("--algo dtp --model vgg --data cifar10 --help"))
    assert "(default: 20 30 35 55 20)" in capsys.readouterr().out


def test_help_sets_every_name_apart_from_what_it_is(capsys):
    with pytest.raises(SystemExit):
        parse(["--help"])
    lines = capsys.readouterr().out.splitlines()
    for registry in REGISTRIES:
        begin = next(i for i, line in enumerate(lines) if line.endswith(f"(--{registry.flag}):")) + 1
        found = [line.split(maxsplit=1) for line in lines[begin : begin + len(registry.names())]]
        assert found == [[entry.name, entry.summary] for entry in registry.entries.values()]


def test_help_answers_in_under_three_seconds_and_without_torch():
    before = os.times()
    done = subprocess.run([sys.executable, ROOT / "main.py", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--max-epochs" in done.stdout
    # Of computing, for the machine may have more to do.
    after = os.times()
    assert sum(after[2:4]) - sum(before[2:4]) < 3
    code = "import sys, dtp.cli.train, dtp.run.folder, dtp.system.signals; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_parses_and_tells_its_origin(preset):
    algo, model, data, *variant = preset.split("_")
    config = parse(["--algo", algo, "--model", model, "--data", data, *(["--config", preset] if variant else [])])
    values, said = config.as_dict(), find_preset(preset)
    assert said and all(values[name] == value for name, value in said.values.items())
    # What it goes beyond is only named: what that says is not so of this one.
    plain = f"{algo}_{model}_{data}"
    beneath = [f"preset {plain}"] if variant and variant[0] != values["task"] and find_preset(plain) else []
    own = [f"preset {preset}: {said.origin}"]
    assert said.origin and [line for line in config.origins if line.startswith("preset")] == beneath + own
    assert parse(["--config", preset]).origins[:-1] == config.origins[:-1]


def test_a_configuration_survives_being_written_as_arguments():
    config = parse(words("--algo dtp --model vgg --data cifar10 --flip false --val-size 0.1 --max-steps 5 --noise 0.1"))
    again = parse(as_arguments(config.as_dict()))
    assert again.as_dict() == config.as_dict()


def test_options_of_ones_own_that_nothing_is_written_about_are_not_listed_in_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_undescribed.py").write_text(
        "from dataclasses import dataclass\nfrom dtp.algorithms import BP\nclass Mine(BP):\n    @dataclass\n"
        "    class Options(BP.Options):\n        strangeness: float = 0.25\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SystemExit):
        parse(words("--algo my_undescribed:Mine --help"))
    lines = capsys.readouterr().out.splitlines()
    assert "rule my_undescribed:Mine: its options" in lines and "  --strangeness NUMBER" in lines


def test_a_users_rule_brings_its_own_options(tmp_path, monkeypatch):
    (tmp_path / "my_rules.py").write_text(
        "from dataclasses import dataclass\n"
        "from dtp.algorithms import DTP\n"
        "class Mine(DTP):\n"
        '    """My own rule."""\n'
        "    @dataclass\n"
        "    class Options(DTP.Options):\n"
        '        """How mine differs."""\n'
        "        # How strange it is, from 0 to 1.\n"
        "        strangeness: float = 0.25\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = parse(words("--algo my_rules:Mine --strangeness 0.5 --beta 0.1"))
    assert (config.algo.strangeness, config.algo.beta) == (0.5, 0.1)


LONG = 300 * "x"
MISTAKES = {
    "unknown option": ("--max-epoch 3", "Unknown option --max-epoch; did you mean --max-epochs?"),
    "unknown option, underscores": ("--batchsize 3", "did you mean --batch-size?"),
    "what others call it": ("--learning_rate 0.1", "Unknown option --learning_rate; did you mean --lr?"),
    "several values for one": ("--lr 0.1 --seed 0 1", "Unexpected word '1' after --seed, which takes one value"),
    "several values after an equals sign": ("--seed=0 1", "Unexpected word '1' after --seed, which takes one value"),
    "one dash": ("--seed 0 -lr 0.1", "Unexpected word '-lr'; options begin with two dashes"),
    "list with commas": ("--widths 10,20", "--widths: expected a whole number, found '10,20'; several are separated"),
    "option of another rule": ("--algo bp --beta 0.5", "--beta is an option of --algo dtp"),
    "option of another network": ("--model vgg --widths 3", "--widths is an option of --model mlp"),
    "option of another dataset": ("--image-size 3", "--image-size is an option of --data imagefolder"),
    "unknown rule": ("--algo vanila-dtp", "did you mean vanilla-dtp?"),
    "unknown network": ("--model vg", "did you mean vgg?"),
    "unknown dataset": ("--data cifar-10", "did you mean cifar10?"),
    "unknown choice": ("--logger wand", "--logger: expected one of csv, wandb; found 'wand'; did you mean wandb?"),
    "word for a number": ("--lr abc", "--lr: expected a number, found 'abc'"),
    "fraction for a whole number": ("--max-epochs 1.5", "--max-epochs: expected a whole number, found '1.5'"),
    "word in a list": ("--noise 0.1 high", "--noise"),
    "negative with an exponent": ("--max-epochs -1e-3", "--max-epochs: expected a whole number, found '-1e-3'"),
    "no finite number": ("--lr nan", "--lr: expected finite values, found nan"),
    "minus infinity": ("--lr -inf", "--lr: expected finite values, found -inf"),
    "number that no float holds": ("--lr 1e300", "--lr: expected a number of at most 1e+30, found 1e+300"),
    "number that no float holds, in a list": ("--noise 0.1 1e99", "--noise: expected a number of at most 1e+30"),
    "number of more than 64 bits": (f"--widths {10**400}", "--widths: expected a whole number of at most 1000000"),
    "home of nobody": ("--run-dir ~nosuchuser/x", "~nosuchuser/x: expected a path, found the home folder of a user"),
    "home of nobody, data": ("--data-dir ~nosuchuser/x", "~nosuchuser/x: expected a path"),
    "home of nobody, resume": ("--resume ~nosuchuser/x", "~nosuchuser/x: expected a path"),
    "home of nobody, config": ("--config ~nosuchuser/x", "~nosuchuser/x: expected a path"),
    "home of nobody, weights": ("--init-weights ~nosuchuser/x", "~nosuchuser/x: expected a path"),
    "long name": (f"--run-dir {LONG}", "cannot be read or written (File name too long)"),
    "long name, data": (f"--data mnist --data-dir {LONG}", "cannot be read or written (File name too long)"),
    "long name, resume": (f"--resume {LONG}", "cannot be read or written (File name too long)"),
    "long name, config": (f"--config {LONG}", "cannot be read or written (File name too long)"),
    "no value": ("--lr", "--lr: expected one argument, found none"),
    "no value is wanted": ("--help=1", "--help: ignored explicit argument '1'"),
    "stray word": ("train", "Unexpected word 'train'"),
    "zero epochs": ("--max-epochs 0", "--max-epochs: expected at least 1, found 0"),
    "negative seed": ("--seed -1", "--seed"),
    "zero steps": ("--max-steps 0", "--max-steps: expected at least 1"),
    "wrong devices": ("--devices two", "--devices: expected a whole number of at least 1, or auto, found 'two'"),
    "fp16": ("--precision 16-mixed", "float16 is refused"),
    "unknown precision": ("--precision 8", "--precision: expected one of 32, 64, bf16-mixed"),
    "wrong limit": ("--limit-train-batches 2.5", "--limit-train-batches: expected a count"),
    "zero training batches": ("--limit-train-batches 0", "--limit-train-batches"),
    "stock ddp": ("--strategy ddp", "--strategy: expected one of auto, feedback-ddp"),
    "missing file": ("--config nowhere.yaml", "--config nowhere.yaml: no such file"),
    "path of a preset without a file": ("--config a/long/way/to/drl_mlp_mnist.yaml", "; did you mean drl_mlp_mnist?"),
    "module that is not there": ("--algo no_such_module:Rule", "could not be imported"),
    "class that is not there": ("--algo dtp.algorithms.dtp:Nothing", "could not be imported"),
    "class of another kind": ("--algo dtp.models:VGG", "expected a subclass of dtp.algorithms.base.Algorithm"),
    "neither true nor false": ("--flip maybe", "--flip: expected true or false, found 'maybe'"),
    "large seed": ("--seed 5000000000", "--seed: expected a number from 0 to 4294967295, found 5000000000"),
    "other case": ("--algo DTP", "did you mean dtp?"),
    "run that is not there": ("--resume nowhere", "--resume nowhere: no such file or folder"),
}


def test_what_others_call_an_option_leads_to_one_that_exists():
    owners = [RunOptions, *(entry.load_options() for registry in REGISTRIES for entry in registry.entries.values())]
    ours = {field.name.replace("_", "-") for owner in owners for field in dataclasses.fields(owner)}
    assert set(_ELSEWHERE.values()) <= ours and not ours & set(_ELSEWHERE)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_and_status_2(mistake, capsys, monkeypatch, tmp_path):
    from dtp.cli.train import main

    monkeypatch.chdir(tmp_path)
    command, expected = MISTAKES[mistake]
    assert main(words(command)) == 2
    captured = capsys.readouterr()
    assert expected in captured.err and captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1 and "Traceback" not in captured.err
    assert list(tmp_path.iterdir()) == []


# Each ten times the one before.
ALIASES = [(", ".join(10 * [f"*{a}"]), b) for a, b in itertools.pairwise("abcdefghijklmnop")]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("lr: [", "is not valid YAML"),
        ("- lr\n- 3\n", "expected lines of the form 'option: value'"),
        ("lr: 0.1\n1: 2\n", "expected the name of an option before each colon, found 1."),
        ("verbose: 'on'", "--verbose: expected true or false, found 'on'"),
        ("lrr: 0.1", "Unknown option --lrr; did you mean --lr?"),
        ("lr: fast", "--lr: expected a number, found 'fast'"),
        ("noise: [[1, 2], [3]]", "expected a single value or a flat list for 'noise'"),
        ("lr: {a: 1}", "expected a single value or a flat list for 'lr'"),
        ("routing: sideways", "--routing: expected one of noisy, fixed"),
        ("noise: [0.1, --download]", "noise: expected a value, found '--download'"),
        ("data_dir: --download", "data_dir: expected a value, found '--download'"),
        ("lr=3: 1", "expected names of options, found 'lr=3'"),
        ("lr: " + 5000 * "9", "is not valid YAML"),
        ("lr: 2020-99-99", "is not valid YAML"),
        ("lr: " + 5000 * "[", "is not valid YAML"),
        ("lr: &a [*a]", "is not valid YAML (more than 100000 values"),
        ("a: &a [1, 1]\n" + "".join(f"{b}: &{b} [{a}]\n" for a, b in ALIASES), "more than 100000 values"),
        ("lr: 0.1\nlr: 0.2\n", "is not valid YAML ('lr' stands there twice, again in line 2)"),
        ("max-epochs: 1\nlr: 0.1\nmax_epochs: 2\n", "max_epochs: expected once, found with dashes and"),
        ("# " + 2**20 * "x", "expected a file of at most 1048576 bytes"),
        ("resume: runs/x", "--resume belongs on the command line"),
    ],
)
def test_a_mistake_in_a_file_names_the_file(text, expected, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=re.escape(expected)) as error:
        parse(["--config", str(file)])
    assert "mine.yaml" in str(error.value)


@pytest.mark.parametrize("spelling", [["--{}", ""], ["--{}="]])
@pytest.mark.parametrize("flag", ["algo", "model", "resume", "run-dir", "config", "data-dir", "init-weights", "widths"])
def test_an_empty_value_does_not_mean_the_default(flag, spelling):
    with pytest.raises(UserError, match=f"--{flag}: expected a value, found an empty text"):
        parse([word.format(flag) for word in spelling])


@pytest.mark.parametrize("command", ["search", "sweep", "report", "theory"])
def test_no_command_takes_an_empty_value(command, capsys):
    main = importlib.import_module(f"dtp.experiments.{command}.command").main
    assert main(["comparison", "--output", ""]) == 2
    assert "--output: expected a value, found an empty text" in capsys.readouterr().err


def test_an_empty_value_in_a_file_means_none(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("init_weights: ''\nmax_epochs: 3\n")
    assert parse(["--config", str(file)]).run.init_weights == ""
    assert Job(tmp_path / "run", {"init_weights": "", "max_epochs": 3}).config().run.max_epochs == 3


@pytest.mark.parametrize("word", ["a\nb", "a\x1bb", "a\u2028b", "a\udcffb"])
def test_words_that_are_not_one_line_of_text_are_refused(word):
    with pytest.raises(UserError, match="--run-dir: expected text of one line") as error:
        parse(["--run-dir", word])
    assert str(error.value).isprintable()


@pytest.mark.parametrize("number", ["-1e-3", "-1E+3", "-.5", "-2.", "-7"])
def test_negative_numbers_are_values(number):
    with pytest.raises(UserError, match=re.escape(f"--lr: expected a number above 0, found {float(number)}.")):
        parse(["--lr", number, "--seed", "1"])


@pytest.mark.parametrize("text", ["lr: null", "widths:", "algo: ~", "nothing: null"])
def test_null_in_a_file_is_no_value(tmp_path, text):
    file = tmp_path / "mine.yaml"
    file.write_text(f"{text}\n")
    with pytest.raises(UserError, match=rf"{file}: {text.partition(':')[0]}: expected a value, found none"):
        parse(["--config", str(file)])


def test_null_in_a_file_stands_for_a_default_that_is_none(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("val_size: null\n")
    assert parse(["--config", str(file)]).data == parse([]).data


def _whole_numbers():
    """Whole numbers among the options: (option, words that choose who has it)."""
    found = {field.name: [] for field in dataclasses.fields(RunOptions) if field.type == "int"}
    for registry in REGISTRIES:
        for name, entry in registry.entries.items():
            for field in dataclasses.fields(entry.load_options()):
                if any(kind in str(field.type) for kind in ("int", "Iterations")) and "Literal" not in str(field.type):
                    found.setdefault(field.name, [f"--{registry.flag}", name])
    return found | {"clusters": ["--algo", "competitive"]}


@pytest.mark.parametrize("option, words", _whole_numbers().items())
def test_a_count_has_a_limit_unless_a_large_one_costs_nothing(option, words):
    # Seeds are any number; of the others a large one stands for never, or for no limit.
    free = {"seed", "split_seed", "max_steps", "log_every", "checkpoint_every", "diagnostics_every", "lr_period"}
    free |= {"feedback_memory", "lr_milestones"}
    command = [*words, f"--{option.replace('_', '-')}", "1000000001"]
    if option in free:
        parse(command)
    else:
        with pytest.raises(UserError, match=f"--{option.replace('_', '-')}: expected a whole number of at most"):
            parse(command)


@pytest.mark.parametrize("other", ["--lr-schedule constant", "--lr-schedule=cosine", "--lr_period 10"])
def test_another_schedule_than_a_presets_leaves_its_milestones_out(other):
    assert parse(words("--config fa_lenet_mnist")).algo.lr_milestones == [50, 75]
    assert parse(words(f"--config fa_lenet_mnist {other}")).algo.lr_milestones == []


def test_no_biases_leave_out_what_a_preset_says_of_one():
    preset = "--algo dfa --model mlp --data fashion-mnist"
    assert not parse(words(preset)).model.last_hidden_bias
    assert parse(words(f"{preset} --bias false")).model.last_hidden_bias


@pytest.mark.parametrize("other", ["lr_schedule: constant", "lr_period: 10"])
def test_another_schedule_in_a_file_leaves_a_presets_milestones_out_too(other, tmp_path):
    file = tmp_path / "other.yaml"
    file.write_text(f"{other}\n")
    command = words(f"--algo fa --model lenet --data mnist --config {file}")
    assert parse(command).algo.lr_milestones == []
    assert parse([*command, *words("--lr-schedule step --lr-period 0")]).algo.lr_milestones == [50, 75]
    file.write_text(f"{other}\nlr_milestones: [6]\n")
    assert parse(command).algo.lr_milestones == [6]


@pytest.mark.parametrize("place", ["words", "file"])
def test_milestones_are_left_out_nowhere_else(place, tmp_path):
    """Who says both has them told that they do not go together (tests/algorithms/test_optimizers.py)."""
    file = tmp_path / "both.yaml"
    file.write_text("lr_schedule: constant\nlr_milestones: [5]\n" if place == "file" else "lr_milestones: [6]\n")
    given = "" if place == "file" else "--lr-schedule constant --lr-milestones 5"
    assert parse(words(f"--algo fa --model lenet --config {file} {given}")).algo.lr_milestones == [5]


def test_a_count_of_a_class_of_the_users_own_has_no_limit_of_ours(tmp_path, monkeypatch):
    (tmp_path / "counted.py").write_text(
        "from dataclasses import dataclass\n"
        "from dtp.algorithms import BP\n"
        "class Rule(BP):\n"
        "    'Mine.'\n"
        "    @dataclass\n"
        "    class Options(BP.Options):\n"
        "        horizon: int = 10**9\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert parse(["--algo", "counted:Rule"]).algo.horizon == 10**9


def test_options_of_other_types_survive_a_saved_configuration(tmp_path, monkeypatch):
    from dtp.run.folder import differing_options, saved_options

    (tmp_path / "typed.py").write_text(
        "from dataclasses import dataclass\n"
        "from dtp.algorithms import DTP\n"
        "class Mine(DTP):\n"
        "    'Mine.'\n"
        "    @dataclass\n"
        "    class Options(DTP.Options):\n"
        "        # Two numbers.\n"
        "        pair: tuple[int, int] = (1, 2)\n"
        "        # A number and a word.\n"
        "        mixed: tuple[int, str] = (1, 'one')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = parse(words("--algo typed:Mine --pair 3 4 --mixed 2 two"))
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(saved_options(config)))
    assert differing_options(read_yaml(file), config) == {}
    again = parse(["--config", str(file), "--trust"]).algo
    assert again.pair == (3, 4) and again.mixed == (2, "two")
    # A value that cannot be read leaves nothing behind for the next.
    with pytest.raises(UserError, match="--mixed: .*'x'"):
        parse(words("--algo typed:Mine --mixed x two"))
    assert parse(words("--algo typed:Mine --mixed 4 four")).algo.mixed == (4, "four")


@pytest.mark.parametrize("words", ["--resume run", "--config run", "--config run/config.yaml"])
def test_a_run_that_is_older_than_an_option_has_nothing_of_what_its_preset_says_of_that(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved = saved_options(parse(["--config", "pepita_mlp_cifar10"]))
    del saved["dropout"], saved["clip_each"]
    Path("run").mkdir()
    Path("run/config.yaml").write_text(f"# command: dtp train\n{yaml.safe_dump(saved)}")
    config = parse(words.split())
    assert config.model.dropout == 0 and differing_options(saved, config) == {}
    # A file that a person has written has it.
    Path("own.yaml").write_text(yaml.safe_dump(saved))
    assert parse(["--config", "own.yaml"]).model.dropout == 0.1


def test_two_classes_with_one_option_name_are_refused(tmp_path, monkeypatch):
    (tmp_path / "clashing.py").write_text(
        "from dataclasses import dataclass\n"
        "from dtp.algorithms import DTP\n"
        "class Mine(DTP):\n"
        "    @dataclass\n"
        "    class Options(DTP.Options):\n"
        "        # Clashes with the data's.\n"
        "        batch_size: int = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="both define 'batch_size'"):
        parse(words("--algo clashing:Mine"))


@pytest.mark.parametrize("name", ["lr", "max_epochs"])
def test_so_is_one_of_a_dataclass_within_the_options(name, tmp_path, monkeypatch):
    (tmp_path / "nested.py").write_text(
        "from dataclasses import dataclass, field\n"
        "from dtp.algorithms import DTP\n"
        "@dataclass\n"
        "class Inner:\n"
        f"    {name}: float = 1.0\n"
        "class Mine(DTP):\n"
        "    @dataclass\n"
        "    class Options(DTP.Options):\n"
        "        inner: Inner = field(default_factory=Inner)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "nested", raising=False)
    with pytest.raises(UserError, match=rf"Two options are called --{name.replace('_', '-')} \(.*{name}.*\)"):
        parse(words("--algo nested:Mine"))


# --- programs of others -----------------------------------------------------------------------------------------------

PAYLOAD = """from pathlib import Path

from dtp.models import MLP as Found

Path("executed").touch()


class X(Found):
    pass
"""


@pytest.fixture
def payload(tmp_path, monkeypatch):
    """A run whose configuration names a class in its own folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("runs", "payload")]:
        monkeypatch.delitem(sys.modules, name)
    folder = make_run(tmp_path / "runs" / "x", model="runs.x.payload:X", data="digits", max_epochs=1)
    (folder / "payload.py").write_text(PAYLOAD)
    (folder / "checkpoints").mkdir()
    return folder


def refused(text, expected):
    with pytest.raises(UserError) as error:
        parse(words(text))
    for part in expected:
        assert part in str(error.value)


@pytest.mark.parametrize("command", ["--resume runs/x", "--config runs/x", "--config runs/x/config.yaml"])
def test_reading_a_run_imports_no_class_that_it_names(payload, command):
    refused(command, ["names the class runs.x.payload:X", "--trust", "config.yaml" if "resume" in command else command])
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    "command", ["--resume runs/x --trust", "--config runs/x --trust true", "--model runs.x.payload:X --resume runs/x"]
)
def test_no_class_is_ever_imported_from_a_run_folder(payload, command):
    refused(command, ["--model runs.x.payload:X: lies in the run folder"])
    assert not Path("executed").exists()


def test_a_folder_that_is_resumed_is_one_of_a_run_whatever_else_is_in_it(payload):
    for path in payload.iterdir():
        if path.name not in ("config.yaml", "payload.py"):
            path.rmdir() if path.is_dir() else path.unlink()
    refused("--resume runs/x --trust", ["lies in the run folder"])
    refused("--config runs/x --trust", ["lies in the run folder"])
    assert not Path("executed").exists()


def test_a_class_beside_the_command_is_imported_where_the_command_names_or_trusts_it(payload):
    Path("payload.py").write_text(PAYLOAD)
    Path("mine.yaml").write_text("model: payload:X\n")
    refused("--config mine.yaml", ["names the class payload:X"])
    refused("--config mine.yaml --trust false", ["names the class payload:X"])
    assert not Path("executed").exists()
    assert parse(words("--config mine.yaml --model mlp")).run.model == "mlp"
    assert not Path("executed").exists()
    assert parse(words("--config mine.yaml --trust")).run.model == "payload:X"
    assert Path("executed").exists()
    assert parse(words("--config mine.yaml --model payload:X")).run.model == "payload:X"


def test_a_file_cannot_ask_to_be_trusted(payload):
    Path("mine.yaml").write_text("model: payload:X\ntrust: true\n")
    Path("payload.py").write_text(PAYLOAD)
    refused("--config mine.yaml", ["--trust"])
    refused("--config mine.yaml --model mlp", ["--trust belongs on the command line"])
    assert not Path("executed").exists()


def test_a_report_imports_nothing(payload, capsys):
    from dtp.experiments.report.command import main as report

    assert report(["runs/x"]) == 0
    assert not Path("executed").exists()
