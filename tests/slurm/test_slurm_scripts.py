"""The sbatch scripts, run with an srun and a scontrol that only note how they were called."""

import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from dtp.cli.arguments import parse
from dtp.errors import UserError
from dtp.run.folder import open_run
from dtp.slurm import names
from dtp.slurm import script as slurm_text
from dtp.slurm.__main__ import main as slurm_main

SLURM = Path(__file__).parent.parent.parent / "slurm"
SCRIPTS = ["vgg_dtp", "vgg_bp"]
JOB = {
    "SLURM_JOB_ID": "17",
    "SLURM_JOB_NAME": "vgg_dtp",
    "SLURM_NNODES": "2",
    "SLURM_NTASKS_PER_NODE": "4",
    "SLURM_CPUS_PER_TASK": "3",
}
ARRAY = {"SLURM_JOB_ID": "19", "SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "5"}

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")


class Cluster:
    """A folder that stands for the repository, and what sbatch would do with it."""

    def __init__(self, folder):
        self.root = folder / "repository"
        self.spool = folder / "spool"
        self.programs = folder / "programs"
        for path in (self.root, self.spool, self.programs):
            path.mkdir()
        shutil.copytree(SLURM, self.root / "slurm")
        self.program("python", "exit 1")
        self.program(
            "srun",
            'printf "%s\\n" "$@" > "$NOTES/srun"; pwd > "$NOTES/pwd"; env > "$NOTES/env"; echo "$SAYS"; eval "$DOES";'
            " exit $STATUS",
        )
        self.program(
            "scontrol",
            'test "$1" = show && echo "   JobState=$STATE Reason=None" && exit;'
            ' echo "$@" >> "$NOTES/scontrol"; exit ${SCONTROL_STATUS:-0}',
        )

    def program(self, name, body):
        path = self.programs / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def run(self, *arguments, script="vgg_dtp", text=None, status=0, submitted_from=None, **environ):
        """Run a copy of the script, or another ``text``, from elsewhere, as SLURM does."""
        copied = self.spool / "slurm_script"
        copied.write_text(text or (SLURM / f"{script}.sh").read_text())
        return subprocess.run(
            ["bash", str(copied), *arguments],
            cwd=self.spool,
            env={
                "PATH": f"{self.programs}:{os.environ['PATH']}",
                "HOME": str(self.spool),
                "NOTES": str(self.spool),
                "STATUS": str(status),
                "SAYS": "a line of main.py",
                # What srun does besides: main.py makes a run of the folder.
                "DOES": "touch runs/vgg_dtp-17/config.yaml",
                "STATE": "RUNNING",
                "SLURM_SUBMIT_DIR": str(submitted_from or self.root),
                **JOB,
                **environ,
            },
            capture_output=True,
            text=True,
            timeout=30,
        )

    def noted(self, name):
        path = self.spool / name
        return path.read_text().splitlines() if path.exists() else None

    def log(self, run_dir="runs/vgg_dtp-17", job="17"):
        return (self.root / run_dir / f"slurm-{job}.out").read_text()

    @property
    def command(self):
        """The program that srun was to start, with its arguments."""
        words = self.noted("srun")
        return words[words.index("python") :]

    def option(self, flag):
        """The value that counts, the last one."""
        command = self.command
        return command[len(command) - command[::-1].index(flag)] if flag in command else None


@pytest.fixture
def cluster(tmp_path):
    return Cluster(tmp_path)


@pytest.mark.parametrize("script, algo", [("vgg_dtp", "dtp"), ("vgg_bp", "bp")])
def test_starts_main_under_srun_on_all_nodes_and_devices(cluster, script, algo):
    done = cluster.run(script=script, SLURM_JOB_NAME=script)
    assert (done.returncode, done.stderr) == (0, "")
    assert cluster.command == [
        *["python", "-m", "dtp", "train", "--algo", algo, "--model", "vgg", "--data", "imagenet32"],
        *["--num-nodes", "2", "--devices", "4", "--run-dir", f"runs/{script}-17", "--resume", "auto"],
    ]
    assert cluster.noted("pwd") == [str(cluster.root)]
    assert "SRUN_CPUS_PER_TASK=3" in cluster.noted("env")
    assert cluster.noted("scontrol") is None


def test_arguments_and_variables_are_passed_on(cluster):
    cluster.run(
        *["--seed", "1", "--run-dir", "a folder"],
        DTP_DATA_DIR="/the data",
        DTP_RUN_DIR="ignored",
        DTP_ARGS="--batch-size  64\n --seed 2 --limit *",
    )
    assert cluster.option("--data-dir") == "/the data"
    assert cluster.option("--batch-size") == "64"
    assert cluster.option("--limit") == "*"
    assert cluster.option("--seed") == "1"
    assert cluster.option("--run-dir") == "a folder"
    assert not (cluster.root / "ignored").exists()


def test_run_dir_can_be_set_and_is_the_same_after_a_requeue(cluster):
    cluster.run(DTP_RUN_DIR="scratch/my run")
    assert cluster.option("--run-dir") == "scratch/my run"
    cluster.run()
    first = cluster.command
    cluster.run(SLURM_RESTART_COUNT="2")
    assert cluster.command == first


@pytest.mark.parametrize("words", [["--resume", "old/step=5.ckpt"], ["--resume=old/step=5.ckpt"]])
def test_a_run_from_a_checkpoint_elsewhere_goes_on_in_its_own_folder_after_a_requeue(cluster, words):
    cluster.run(*words)
    assert cluster.command[-len(words) :] == words
    (cluster.root / "runs" / "vgg_dtp-17").mkdir(exist_ok=True)
    (cluster.root / "runs" / "vgg_dtp-17" / "config.yaml").touch()
    cluster.run(*words, SLURM_RESTART_COUNT="1")
    assert cluster.command[-len(words) - 2 :] == [*words, "--resume", "runs/vgg_dtp-17"]


def test_array_tasks_have_seeds_and_folders_of_their_own(cluster):
    cluster.run(**ARRAY)
    assert cluster.option("--seed") == "5"
    assert cluster.option("--run-dir") == "runs/vgg_dtp-17_5"
    cluster.run("--seed", "8", **ARRAY, DTP_RUN_DIR="scratch/run")
    assert cluster.option("--seed") == "8"
    assert cluster.option("--run-dir") == "scratch/run-5"


@pytest.mark.parametrize(
    "arguments, environ, run_dir",
    [
        ((), {}, "runs/vgg_dtp-17"),
        ((), {"DTP_RUN_DIR": "my run"}, "my run"),
        (("--run-dir", "mine"), {"DTP_RUN_DIR": "theirs"}, "mine"),
        (("--run-dir=mine",), {"DTP_ARGS": "--run-dir theirs"}, "mine"),
    ],
)
def test_what_a_run_prints_lies_beside_it_over_all_starts(cluster, arguments, environ, run_dir):
    begins = {**environ, "DOES": f'touch "{run_dir}/config.yaml"'}
    first = cluster.run(*arguments, **begins)
    assert first.returncode == 0
    assert f"{run_dir}/slurm-17.out" in first.stdout and "a line" not in first.stdout
    cluster.run(*arguments, **begins, SLURM_RESTART_COUNT="1", SAYS="another line")
    lines = cluster.log(run_dir).splitlines()
    assert [line.partition(", on ")[0] for line in lines] == [
        *["job 17, start 1", "a line of main.py"],
        *["job 17, start 2", "another line"],
    ]


@pytest.mark.parametrize("arguments, environ", [(("--run-dir=~/mine",), {}), ((), {"DTP_RUN_DIR": "~/mine"})])
def test_the_log_lies_in_the_home_folder_where_the_run_does(cluster, arguments, environ):
    assert cluster.run(*arguments, **environ).returncode == 0
    assert (cluster.spool / "mine/slurm-17.out").is_file() and not (cluster.root / "~").exists()


def test_a_folder_with_nothing_but_a_log_is_one_for_a_new_run(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "slurm-17_5.out").touch()
    config = parse(["--run-dir", str(tmp_path / "run"), "--resume", "auto"])
    assert open_run(config).checkpoint is None
    (tmp_path / "run" / "else.out").touch()
    with pytest.raises(UserError, match="not empty"):
        open_run(config)


def test_a_run_that_never_began_shows_why_at_once_and_leaves_no_folder(cluster):
    done = cluster.run(status=2, SAYS="error: a mistake.", DOES="mkdir runs/vgg_dtp-17/checkpoints")
    assert done.returncode == 2
    assert "\nerror: a mistake.\n" in done.stdout
    assert not (cluster.root / "runs/vgg_dtp-17").exists()


@pytest.mark.parametrize("environ, job", [({}, "17"), ({**ARRAY, "DTP_RUN_DIR": "a"}, "17_5")])
def test_a_run_that_asks_to_be_continued_is_queued_again(cluster, environ, job):
    done = cluster.run(status=75, **{"DOES": "touch a-5/config.yaml"} if "DTP_RUN_DIR" in environ else {}, **environ)
    assert done.returncode == 0
    assert cluster.noted("scontrol") == [f"requeue {job}"]


@pytest.mark.parametrize("status", [138, 143])
def test_a_job_whose_signal_came_before_main_could_listen_is_queued_again(cluster, status):
    done = cluster.run(status=status, DOES="")
    assert done.returncode == 0
    assert cluster.noted("scontrol") == ["requeue 17"]


def test_a_job_that_slurm_preempts_lives_until_its_run_has_stopped_and_is_queued_again(cluster):
    # SLURM sends SIGTERM to the script's shell as well as to main.py.
    done = cluster.run(status=75, DOES='touch runs/vgg_dtp-17/config.yaml; kill -TERM "$PPID"; sleep 0.2')
    assert done.returncode == 0
    assert cluster.noted("scontrol") == ["requeue 17"]


def test_a_job_says_that_it_is_queued_again_before_slurm_ends_it(cluster):
    cluster.program("scontrol", 'test "$1" = show && echo "JobState=RUNNING" && exit; kill -KILL "$PPID"')
    done = cluster.run(status=75)
    assert done.returncode == -9
    assert done.stdout.endswith("job 17 stopped before its end and is to be queued again\n")


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED", "PENDING"])
def test_a_job_that_was_cancelled_or_queued_again_meanwhile_is_left_alone(cluster, state):
    done = cluster.run(status=75, STATE=state)
    assert done.returncode == 75
    assert "DTP_RUN_DIR=runs/vgg_dtp-17 to go on" in done.stdout
    assert cluster.noted("scontrol") is None


@pytest.mark.parametrize("status", [1, 2, 130, 137])
def test_other_statuses_are_passed_through_with_the_reason(cluster, status):
    done = cluster.run(status=status, SAYS="error: one.\nerror: the last.\nand so on")
    assert done.returncode == status
    assert done.stderr.startswith("error: the last.\n") and f"status {status}" in done.stderr
    assert "DTP_RUN_DIR=runs/vgg_dtp-17 to go on" in done.stderr
    assert cluster.noted("scontrol") is None


def test_an_error_of_an_earlier_start_is_not_taken_for_the_reason(cluster):
    cluster.run(status=1, SAYS="error: before.")
    done = cluster.run(status=137, SLURM_RESTART_COUNT="1")
    assert "status 137" in done.stderr and "before" not in done.stderr


def test_a_job_that_cannot_be_queued_again_says_how_to_go_on(cluster):
    done = cluster.run(status=75, SCONTROL_STATUS="1")
    assert done.returncode == 75
    assert "DTP_RUN_DIR=runs/vgg_dtp-17" in done.stderr


def test_virtual_environment_is_activated(cluster, tmp_path):
    activate = tmp_path / "venv/bin/activate"
    activate.parent.mkdir(parents=True)
    activate.write_text("export ACTIVATED=yes\n")
    cluster.run(DTP_VENV=str(tmp_path / "venv"))
    assert "ACTIVATED=yes" in cluster.noted("env")


@pytest.mark.parametrize(
    "environ, expected",
    [
        ({"submitted_from": "/"}, "submit from the root of the repository"),
        ({"SLURM_JOB_ID": ""}, "not a SLURM job"),
        ({"DTP_VENV": "/nowhere"}, "no virtual environment"),
        ({"DTP_RUN_DIR": "main.py/run"}, "cannot be made"),
    ],
)
def test_mistakes_are_told_in_one_line(cluster, environ, expected):
    (cluster.root / "main.py").touch()
    done = cluster.run(**environ)
    assert done.returncode == 2
    assert expected in done.stderr and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert cluster.noted("srun") is None


@pytest.mark.parametrize("script", SCRIPTS)
def test_sbatch_directives(script):
    text = (SLURM / f"{script}.sh").read_text()
    directives = re.findall(r"^#SBATCH (\S+)$", text, re.MULTILINE)
    # sbatch stops looking at the first command.
    assert len(directives) == len(re.findall(r"^#SBATCH", text.split("\nset ")[0], re.MULTILINE))
    options = {directive.partition("=")[0] for directive in directives}
    assert {"--requeue", "--open-mode=append", "--signal=SIGUSR1@90", "--nodes=1", "--ntasks-per-node=1"} <= {
        *directives
    }
    assert {"--gpus-per-node", "--cpus-per-task", "--mem-per-cpu", "--time", "--output", "--job-name"} <= options


@pytest.mark.parametrize("name", [*SCRIPTS, "common", "local_cluster"])
def test_scripts_parse(name):
    subprocess.run(["bash", "-n", str(SLURM / f"{name}.sh")], check=True)


@pytest.mark.parametrize("arguments", [[], ["start"], ["up", "a", "b"]])
def test_the_local_cluster_says_what_it_takes(arguments):
    done = subprocess.run(["bash", str(SLURM / "local_cluster.sh"), *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: expected install, up [FOLDER] or down [FOLDER]")
    assert done.stderr.count("\n") == 1 and not done.stdout


@pytest.mark.parametrize("action", ["install", "up", "down"])
def test_the_local_cluster_says_that_it_needs_root(action, tmp_path):
    nobody = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
    # Through a pipe: nobody may not be allowed to read the repository.
    script = (SLURM / "local_cluster.sh").read_text()
    done = subprocess.run(
        ["bash", "-s", action], input=script, capture_output=True, text=True, cwd="/", timeout=30, **nobody
    )
    assert done.returncode == 2
    assert "needs root" in done.stderr and done.stderr.count("\n") == 1 and not done.stdout


def test_tasks_of_an_array_share_a_sweep(cluster):
    does = {"DOES": "touch runs/sweep-17/sweep.yaml", "SLURM_JOB_NAME": "sweep"}
    done = cluster.run("ghawade-depth", "--max-epochs", "2", script="sweep", DTP_DATA_DIR="/the data", **does, **ARRAY)
    assert (done.returncode, done.stderr) == (0, "")
    assert cluster.command == [
        *["python", "-m", "dtp", "sweep", "ghawade-depth", "--output", "runs/sweep-17", "--data-dir", "/the data"],
        *["--max-epochs", "2"],
    ]
    # Stopped before its end, the task is queued again and goes on in the same folder.
    cluster.run("ghawade-depth", script="sweep", status=75, **does, **ARRAY)
    assert cluster.noted("scontrol") == ["requeue 17_5"] and cluster.option("--output") == "runs/sweep-17"
    assert "which sweep" in cluster.run(script="sweep", **does).stderr


@pytest.mark.parametrize("script", names())
def test_a_printed_script_does_the_same_without_a_checkout(cluster, script, capsys):
    arguments = ["ghawade-depth"] if script == "sweep" else ["--seed", "3"]
    place = {"SLURM_JOB_NAME": script, "DOES": "true"}
    assert cluster.run(*arguments, script=script, **place).returncode == 0
    expected = cluster.command
    shutil.rmtree(cluster.root / "slurm")
    assert slurm_main([script]) == 0
    text = capsys.readouterr().out
    assert text.startswith((SLURM / f"{script}.sh").read_text().partition("\nset -euo")[0])
    done = cluster.run(*arguments, text=text, **place)
    assert (done.returncode, done.stderr) == (0, "") and cluster.command == expected


def test_submit_gives_sbatch_its_options_the_script_and_the_arguments(cluster, monkeypatch, capfd):
    cluster.program("sbatch", 'printf "%s\\n" "$@" > "$NOTES/words"; cat "$2" > "$NOTES/script"; exit 3')
    monkeypatch.setenv("PATH", f"{cluster.programs}:{os.environ['PATH']}")
    monkeypatch.setenv("NOTES", str(cluster.spool))
    assert slurm_main(["vgg_bp", "--submit", "--array=1-5", "--", "--logger", "wandb"]) == 3
    option, path, *arguments = cluster.noted("words")
    assert (option, Path(path).name, arguments) == ("--array=1-5", "vgg_bp.sh", ["--logger", "wandb"])
    assert "\n".join(cluster.noted("script")) + "\n" == slurm_text("vgg_bp")
    assert capfd.readouterr().out == "sbatch --array=1-5 vgg_bp.sh --logger wandb\n"


@pytest.mark.parametrize(
    "words, expected",
    [
        (["vgg"], "found 'vgg'; did you mean vgg_bp?"),
        (["vgg_bp", "--array=1-5"], "--array=1-5: expected --submit before"),
        (["vgg_bp", "--submit"], "found no sbatch"),
    ],
)
def test_mistakes_of_the_command_are_one_sentence(words, expected, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert slurm_main(words) == 2
    error = capsys.readouterr().err
    assert expected in error and error.startswith("error: ") and error.count("\n") == 1
