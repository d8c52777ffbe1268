"""The command: what the page says, that it is the same each time, and that nothing else is overwritten."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dtp.cli.train import main as train
from dtp.experiments.report.command import main
from tests.experiments.report.folders import make_run
from tests.runs import ROOT

BARTUNOV = {"widths": [256] * 6, "activation": "tanh"}


@pytest.fixture
def runs(tmp_path):
    """A comparison with all that can be the matter with runs."""
    folder = tmp_path / "study"
    for seed in range(3):
        make_run(folder / "bp" / f"seed{seed}", "bp", seed, 0.97 + 0.002 * seed, angles=[0, 0], **BARTUNOV)
        make_run(
            folder / "dtp" / f"seed{seed}",
            "vanilla-dtp",
            seed,
            0.95,
            epochs=8,
            seconds=3,
            angles=[30 + seed, 5],
            feedback=[40],
            **BARTUNOV,
        )
    make_run(folder / "fa" / "seed0", "fa", accuracy=0.9, trained=2, finished=False, **BARTUNOV)
    make_run(folder / "kp" / "seed0", "kp", trained=1, finished=False, **BARTUNOV)
    (folder / "kp" / "seed0" / "failed.txt").write_text("Training diverged: loss | weights.\n")
    (folder / "refused").mkdir()
    (folder / "refused" / "failed.txt").write_text("--lr: expected a number above 0.\n")
    return folder


def page_of(folder, *words):
    assert main([str(folder), *words]) == 0
    return (folder / "report.md").read_text()


def row(page, label):
    (found,) = [line for line in page.splitlines() if line.startswith(f"| `{label}` |") and line.count("|") > 8]
    return [cell.strip() for cell in found.strip("|").split(" | ")]


def test_the_command_of_the_page_can_be_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "my runs" / "bp", "bp", accuracy=0.9)
    assert "\n    dtp report 'my runs'\n" in page_of(Path("my runs"), "--no-figures")


def test_the_page_says_it_all(runs):
    page = page_of(runs, "--title", "A study", "--no-figures")
    assert "# A study\n" in page
    assert "9 runs: 6 finished, 1 unfinished, 2 failed." in page
    bp, dtp, fa = row(page, "bp"), row(page, "vanilla-dtp"), row(page, "fa")
    assert bp[1:6] == [
        "mlp 6x256 tanh",
        "4 (2,200)",
        "97.20 ± 0.20 (3)",
        "98.52, Bartunov et al. 2018, table 1",
        "-1.32",
    ]
    assert dtp[2:4] == ["4 + 4 of feedback (4,400)", "95.00 ± 0.00 (3)"]
    assert dtp[5:10] == ["-3.17", "3.00", "6.00", "6.00", "18,333"]
    assert fa[3] == "unfinished"
    assert "1. `bp`: Against Bartunov et al. 2018, table 1: ours 4 epochs, theirs 500; " in page
    assert "| `vanilla-dtp` | 31 ± 1, 5 ± 0 | from layer 2: 40 ± 0 |" in page
    assert (
        "| `kp/seed0` | failed | 1 of 4 epochs, 550 batches | 95.00% | Training diverged: loss \\| weights. |" in page
    )
    assert "| `refused` | failed | not configured |  | --lr: expected a number above 0. |" in page
    assert "device Abacus, 2 cores" in page


def test_commands_are_given_without_the_folders_of_this_machine(runs):
    page = page_of(runs, "--json", str(runs / "numbers.json"), "--no-figures")
    for text in (page, (runs / "numbers.json").read_text()):
        assert "python main.py --algo vanilla-dtp --model mlp --data mnist" in text
        assert "--data-dir DIR" in text
        assert str(runs.parent) not in text and "/somewhere" not in text and "--run-dir" not in text


def test_running_it_again_gives_the_same_files(runs):
    page_of(runs, "--json", str(runs / "numbers.json"))
    made = [path for path in runs.iterdir() if path.is_file()]
    assert {path.name for path in made} == {
        "report.md",
        "numbers.json",
        *(f"report-{kind}.png" for kind in ("angles", "cost", "curves", "curves-time")),
    }
    before = {path: path.read_bytes() for path in made}
    for path in (runs / "report.md", runs / "numbers.json"):
        # As an earlier version wrote it.
        path.write_text(path.read_text().replace("dtp report", "python -m dtp.report", 1))
    page_of(runs, "--json", str(runs / "numbers.json"))
    assert {path: path.read_bytes() for path in runs.iterdir() if path.is_file()} == before


def test_figures_are_on_the_page_and_lie_beside_it(runs, tmp_path):
    assert main([str(runs), "--output", str(tmp_path / "pages" / "mine.md")]) == 0
    page = (tmp_path / "pages" / "mine.md").read_text()
    pictures = {path.name for path in (tmp_path / "pages").glob("*.png")}
    shown = dict(re.findall(r"!\[([^\]]*)\]\((.+?)\)", page))
    assert pictures and set(shown.values()) == pictures
    assert not [words for words in shown if len(words.split()) < 5], "an alternative text that says what is seen"


def test_the_numbers_are_those_of_the_page(runs):
    page_of(runs, "--json", str(runs / "numbers.json"), "--no-figures")
    content = json.loads((runs / "numbers.json").read_text())
    (section,) = content["studies"]
    groups = {group["rule"]: group for group in section["groups"]}
    assert groups["bp"]["test"]["mean"] == pytest.approx(0.972)
    assert groups["bp"]["published"][0]["difference"] == pytest.approx(-1.32)
    assert groups["vanilla-dtp"]["relative_to_bp"]["epoch"]["mean"] == pytest.approx(6)
    assert groups["vanilla-dtp"]["angles"]["update_angle"]["1"]["values"] == [30, 31, 32]
    assert [run["state"] for run in groups["kp"]["runs"]] == ["failed"]
    assert content["without_configuration"] == [
        {"run": "refused", "state": "failed", "failure": "--lr: expected a number above 0."}
    ]


def test_a_damaged_run_among_others_is_left_out_and_told(runs, capsys):
    before = page_of(runs, "--no-figures")
    whole = row(before, "bp")
    (runs / "bp" / "seed2" / "summary.json").write_text('{"epochs": 4, "st')
    capsys.readouterr()
    page = page_of(runs, "--no-figures", "--json", str(runs / "numbers.json"))
    error = capsys.readouterr().err
    assert error.startswith(f"warning: {runs / 'bp' / 'seed2' / 'summary.json'}: is not a summary")
    assert error.endswith("move it away. The run is left out.\n") and error.count("\n") == 1
    assert whole[3].endswith("(3)") and row(page, "bp")[3].endswith("(2)")
    assert "9 runs: 5 finished, 1 unfinished, 2 failed, 1 damaged." in page
    assert "| `bp/seed2` | damaged | unknown |  | summary.json: is not a summary that this program wrote" in page
    (damaged,) = [
        run
        for run in json.loads((runs / "numbers.json").read_text())["without_configuration"]
        if run["state"] == "damaged"
    ]
    assert damaged["run"] == "bp/seed2" and str(runs) not in json.dumps(damaged)


def test_runs_of_differing_commits_and_devices_are_flagged(tmp_path):
    make_run(tmp_path / "a", seed=0)
    versions = {"commit": "abd-dirty", "torch": "2.9"}
    make_run(tmp_path / "b", seed=1, summary={"versions": versions, "device": "Another"})
    make_run(tmp_path / "c", seed=2)
    page = page_of(tmp_path, "--no-figures")
    assert "- **Runs differ in commits**: abc, abd-dirty." in page
    assert "- **Runs differ in devices**: Abacus, 2 cores, Another." in page
    assert "1 of 3 runs were made with changes that are in no commit" in page
    assert "Runs with differing commits: abc, abd-dirty. Runs with differing devices" in page
    (line,) = [line for line in page.splitlines() if line.startswith("| `b` |")]
    assert "commit abd-dirty" in line and "device Another" in line


def test_times_may_be_those_of_short_runs_made_elsewhere(runs, tmp_path):
    make_run(tmp_path / "times" / "bp", epochs=1, seconds=1, summary={"device": "Quiet"}, **BARTUNOV)
    make_run(tmp_path / "times" / "dtp", "vanilla-dtp", epochs=2, seconds=5, summary={"device": "Quiet"}, **BARTUNOV)
    make_run(tmp_path / "times" / "lr", "vanilla-dtp", epochs=2, seconds=50, lr=9.0, **BARTUNOV)
    page = page_of(runs, "--times", str(tmp_path / "times"), "--no-figures", "--json", str(tmp_path / "n.json"))
    assert "| batch / bp | epoch / bp | images/s |" in page
    assert row(page, "vanilla-dtp")[5:9] == ["-3.17", "5.00", "10.00", "18,333"]
    assert "made to measure them (--times)" in page and "Runs differ in devices" in page
    assert [run["run"] for run in json.loads((tmp_path / "n.json").read_text())["times_of"]] == ["bp", "dtp", "lr"]
    page = page_of(runs, "--times", str(tmp_path / "times" / "bp"), "--no-figures")
    assert "Time not comparable: no run of this setting among those that times are of." in page


def test_cut_epochs_are_said_even_where_nothing_is_published(tmp_path):
    make_run(tmp_path / "a", limit_train_batches="5", data="kmnist")
    make_run(tmp_path / "b", "fa", limit_train_batches="0.5", data="kmnist")
    make_run(tmp_path / "c", "kp", data="kmnist", summary={"tested_weights": "last"})
    make_run(tmp_path / "d", "tp", finished=False, data="kmnist")
    page = page_of(tmp_path, "--no-figures")
    assert "Tested weights." not in page
    assert "`bp`: Epochs cut to 5 batches. Tested weights best on validation." in page
    assert "`fa`: Epochs cut to a part of 0.5." in page
    assert "`kp`: Tested weights last." in page
    assert "No published figure known to us" in page


def test_two_studies_have_a_section_and_figures_each(tmp_path):
    make_run(tmp_path / "a")
    summary = {"test_purity": 0.6, "test_nmi": 0.5, "test_accuracy": None}
    make_run(tmp_path / "b", task="clustering", summary=summary)
    page = page_of(tmp_path)
    assert "## mnist\n" in page and "## mnist, clustering\n" in page
    assert "test purity of clusters, %" in page and "| 60.00 (1) | 0.500 (1) |" in page
    assert "(report-mnist-curves.png)" in page


def test_sections_whose_names_differ_in_letters_or_signs_alone_have_figures_of_their_own(tmp_path):
    for number, folder in enumerate(["птицы", "кошки", "a_b", "a-b"]):
        make_run(tmp_path / str(number), data="imagefolder", data_dir=f"/x/{folder}")
    drawn = re.findall(r"\((report-.*-curves.png)\)", page_of(tmp_path))
    assert len(set(drawn)) == 4 and all((tmp_path / name).is_file() for name in drawn)


def test_figures_of_a_page_with_spaces_in_its_name_are_shown(tmp_path):
    make_run(tmp_path / "a")
    for _ in range(2):
        assert main([str(tmp_path), "--output", str(tmp_path / "my page.md")]) == 0
    # The form that CommonMark asks for.
    page = tmp_path / "my page.md"
    assert "](<my page-curves.png>)" in page.read_text()
    # A page of earlier versions had them in the other.
    page.write_text(page.read_text().replace("(<", "(").replace(">)", ")"))
    assert main([str(tmp_path), "--output", str(page)]) == 0 and "](<my page-curves.png>)" in page.read_text()


# --- what is not to happen --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["report.md", "report-curves.png", "numbers.json"])
def test_files_of_others_are_not_overwritten(runs, capsys, name):
    (runs / name).write_text("mine")
    before = {path.name: path.read_bytes() for path in runs.iterdir() if path.is_file()}
    assert main([str(runs), "--json", str(runs / "numbers.json")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and name in error and error.count("\n") == 1
    assert {path.name: path.read_bytes() for path in runs.iterdir() if path.is_file()} == before


def test_mistakes_are_told_in_one_sentence(runs, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    damaged = make_run(tmp_path / "damaged")
    (damaged / "metrics.csv").write_text("nothing\n")
    for words, said in (
        ([], "expected run folders"),
        ([str(tmp_path / "nowhere")], "no such folder"),
        ([str(tmp_path / "file")], "is a file"),
        ([str(tmp_path / "empty")], "no runs found"),
        ([str(damaged)], "begins with the columns epoch,step"),
        ([str(runs), "--output", "page.html"], "ends in .md"),
        ([str(runs), "--seeds", "3"], "unrecognized arguments".capitalize()),
    ):
        assert main(words) == 2
        out, error = capsys.readouterr()
        assert error.startswith("error: ") and said in error and error.count("\n") == 1 and out == ""
    assert not list(tmp_path.glob("**/*.md"))


def test_help_needs_neither_torch_nor_what_tables_and_figures_do():
    code = "import sys; sys.argv[1:] = ['--help']\nfrom dtp.experiments.report.command import main\ntry: main()\n" + (
        "except SystemExit: assert not {'torch', 'lightning', 'matplotlib', 'pandas', 'jinja2'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "usage: dtp report" in done.stdout


# --- for real ---------------------------------------------------------------------------------------------------------


def test_a_report_of_real_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for algo, epochs in (("bp", 1), ("vanilla-dtp", 2)):
        words = f"--algo {algo} --model mlp --widths 8 --batch-size 128 --max-epochs {epochs} --run-dir runs/{algo}"
        assert train(words.split()) == 0
    assert main(["runs", "--json", "runs/numbers.json"]) == 0
    content = json.loads((tmp_path / "runs" / "numbers.json").read_text())
    (section,) = content["studies"]
    bp, dtp = section["groups"]
    assert bp["forward_epochs"] == dtp["forward_epochs"] == [1]
    assert bp["test"]["mean"] == json.loads((tmp_path / "runs" / "bp" / "summary.json").read_text())["test_accuracy"]
    assert dtp["relative_to_bp"]["epoch"]["mean"] > 0
    assert set(dtp["angles"]["update_angle"]) == {"1", "2"}
    assert {path.name for path in (tmp_path / "runs").glob("*.png")} == {
        f"report-{kind}.png" for kind in ("angles", "cost", "curves", "curves-time")
    }
    page = (tmp_path / "runs" / "report.md").read_text()
    assert "dtp train --algo vanilla-dtp --model mlp --widths 8" in page and "## digits\n" in page
