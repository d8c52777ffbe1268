"""Whatever happens to one rank, all end soon, one says why, and the run goes on from its last checkpoint."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from dtp.distributed.watch import Peer, Place, Watch, is_lost_connection
from dtp.run.folder import newest_checkpoint
from tests.distributed.ranks import free_port
from tests.preloaded import children
from tests.runs import rows

ROOT = Path(__file__).parent.parent.parent
pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("preloaded"),
    pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores"),
    pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for the processes that are left in /proc"),
]

# Does what FAULT says on one rank in one batch; every rank notes its process.
RULE = """
import os, resource, signal, time
from pathlib import Path
import torch
from dtp.algorithms import DTP
from dtp.distributed.watch import Watch
from dtp.errors import UserError

serve, leave = Watch._wait_for_others, Watch._exit

def serve_longer(watch):
    verdict = serve(watch)
    time.sleep(2)
    return verdict

def leave_later(watch, *status, **heard):
    time.sleep(3 * watch.place.rank)
    leave(watch, *status, **heard)

class Faulty(DTP):
    "Fails on one rank."

    batches = 0

    def training_batch(self, x, y):
        self.batches += 1
        Path(f"process-{self.global_rank}-{os.getpid()}").touch()
        what, rank, batch = os.environ.get("FAULT", "none 0 0").split()
        if what == "mistake-slowly":
            Watch._wait_for_others, Watch._exit = serve_longer, leave_later
        if self.global_rank == int(rank) and self.batches == int(batch):
            if what == "bug":
                raise ValueError("not thought of")
            if what in ("mistake", "mistake-slowly"):
                raise UserError("A mistake of one rank.")
            if what == "nan":
                x = x * float("nan")
            if what == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if what == "killall":
                for path in Path().glob("process-*"):
                    process = int(path.name.split("-")[2])
                    if process != os.getpid():
                        os.kill(process, signal.SIGKILL)
                os.kill(os.getpid(), signal.SIGKILL)
            if what == "full":
                resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
        return super().training_batch(x, y)
"""
# 21 batches per epoch, of a size that one, two and three ranks share equally.
COMMAND = "--algo faulty:Faulty --model mlp --widths 16 --batch-size 60 --max-epochs 2 --precision 64 --accelerator cpu"
COMMAND = [*COMMAND.split(), "--feedback-iterations", "2"]
TWO = ["--devices", "2"]
PLAIN = [sys.executable, str(ROOT / "main.py")]


def torchrun(ranks=2, script=ROOT / "main.py"):
    return [sys.executable, *f"-m torch.distributed.run --standalone --nproc-per-node {ranks}".split(), str(script)]


@pytest.fixture
def place(tmp_path):
    (tmp_path / "faulty.py").write_text(RULE)
    return tmp_path


def run(place, command, fault="none 0 0", limit=150, new=False):
    """Run ``command`` in ``place`` to its end; returns its status and output. Leaves no process behind.

    ``new``: start Python as users do, for all that happens before torch is imported.
    """
    for path in place.glob("process-*"):
        path.unlink()
    with (place / "output").open("w+") as output:
        process = subprocess.Popen(
            command,
            executable=command[0] if new else None,
            cwd=place,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "FAULT": fault},
            start_new_session=True,
        )
        try:
            status = process.wait(timeout=limit)
            process_ended = time.monotonic()
            while left(place) and time.monotonic() < process_ended + 60:
                time.sleep(0.1)
            output.seek(0)
            text = output.read()
            assert not left(place), text
            return status, text
        finally:
            for number in left(place):
                os.kill(number, signal.SIGKILL)
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def left(place):
    """Ranks that still run."""
    numbers = [int(path.name.split("-")[2]) for path in place.glob("process-*")]
    return [number for number in numbers if alive(number)]


def alive(number):
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def the_error(output):
    """The one message of the run."""
    errors = [line for line in output.splitlines() if "error: " in line or line.startswith("Stopped")]
    assert len(errors) == 1, output
    assert "gloo" not in output and "c10d" not in output, output
    return errors[0]


def weights(folder):
    return torch.load(newest_checkpoint(folder), weights_only=True)["state_dict"]


def assert_equal_weights(folder, expected, tolerance=0.0):
    found = weights(folder)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of two ranks that nothing happens to."""
    place = tmp_path_factory.mktemp("whole")
    (place / "faulty.py").write_text(RULE)
    with children():
        status, output = run(place, [*PLAIN, *COMMAND, *TWO, "--run-dir", "run"])
    assert status == 0, output
    return place / "run"


def test_only_rank_zero_writes(whole):
    files = {str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file()}
    checkpoints = {f"checkpoints/{name}.ckpt" for name in ("best", "step=00000021", "step=00000042")}
    written = {"config.yaml", "metrics.csv", "summary.json", "training.png", "weights.safetensors"}
    assert files == written | {".lock"} | checkpoints
    steps = [line.split(",")[1] for line in (whole / "metrics.csv").read_text().splitlines()[1:]]
    assert steps == sorted(set(steps), key=int) and steps[-1] == "42"


# --- one rank fails ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault, status, message",
    [
        ("bug 1 3", 1, "faulty.py, line 33, raised ValueError: not thought of"),
        ("mistake 1 3", 2, "error: A mistake of one rank."),
        # Rank 0 is at its end already when its training loses the connection, and not yet over.
        ("mistake-slowly 1 3", 2, "error: A mistake of one rank."),
        ("nan 1 3", 2, "error: Training diverged"),
    ],
)
def test_all_end_with_the_message_and_status_of_the_rank_that_fails(fault, status, message, place):
    command = [*PLAIN, *COMMAND, *TWO, "--run-dir", "run", "--checkpoint-every", "5"]
    ended, output = run(place, command, fault)
    assert message in the_error(output)
    assert ended == status
    assert output.count("Traceback") == (1 if fault.startswith("bug") else 0), output


def test_under_torchrun_all_end_with_the_message_of_the_rank_that_fails(place):
    status, output = run(place, [*torchrun(), *COMMAND, *TWO, "--run-dir", "run"], "mistake 1 3")
    assert the_error(output) == "error: A mistake of one rank."
    # torchrun's own status, whatever that of its processes.
    assert status == 1 and "exitcode: 2" in output


def test_a_mistake_that_every_rank_finds_is_told_once(place):
    status, output = run(place, [*torchrun(), "--lr", "fast", "--run-dir", "run"])
    assert "--lr" in the_error(output) and status == 1
    assert not (place / "run").exists()


@pytest.mark.parametrize(
    "argument, message",
    [
        ("--config=missing.yaml", "--config missing.yaml: no such file"),
        ("--lr=0.03", "--lr is 0.05 on rank 0 and 0.03 on rank 1"),
    ],
)
def test_a_rank_with_another_command_or_without_a_file_ends_all(argument, message, place):
    """As where machines differ: a file that one of them lacks, and a setting of its own."""
    script = place / "script.py"
    script.write_text(
        "import os, sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from dtp.cli.train import main\n"
        f"own = [{argument!r}] if os.environ['RANK'] == '1' else []\n"
        "sys.exit(main([*sys.argv[1:], *own]))\n"
    )
    status, output = run(place, [*torchrun(script=script), *COMMAND, *TWO, "--run-dir", "run"])
    assert message in the_error(output)
    assert status == 1


# --- one rank is killed -----------------------------------------------------------------------------------------------


def test_a_killed_rank_ends_the_run_which_goes_on_with_the_command_that_is_printed(place, whole):
    command = [*PLAIN, *COMMAND, *TWO, "--run-dir", "run", "--checkpoint-every", "5"]
    status, output = run(place, command, "kill 1 18")
    error = the_error(output)
    assert "rank 1 of 2" in error and "SIGKILL" in error and "step=00000015.ckpt" in error
    assert status == 1
    again = shlex.split(error.rpartition("python main.py ")[2])
    status, output = run(place, [*PLAIN, *again])
    assert status == 0 and "goes on from batch 15" in output, output
    assert_equal_weights(place / "run", weights(whole))


def test_ranks_whose_first_is_killed_end_too(place):
    command = [*PLAIN, *COMMAND, *TWO, "--run-dir", "run", "--checkpoint-every", "5"]
    status, output = run(place, command, "kill 0 8", new=True)
    error = the_error(output)
    assert "rank 0 of 2" in error and "step=00000005.ckpt" in error
    assert status == -signal.SIGKILL


def test_under_torchrun_a_killed_rank_ends_the_run(place):
    command = [*torchrun(), *COMMAND, *TWO, "--run-dir", "run", "--checkpoint-every", "5"]
    status, output = run(place, command, "kill 1 8")
    error = the_error(output)
    assert "rank 1 of 2" in error and "step=00000005.ckpt" in error and "--resume run" in error
    assert status == 1


def test_a_run_whose_ranks_are_all_killed_goes_on(place, whole):
    command = [*PLAIN, *COMMAND, *TWO, "--run-dir", "run", "--resume", "auto", "--checkpoint-every", "5"]
    status, output = run(place, command, "killall 1 33")
    assert status == -signal.SIGKILL
    status, output = run(place, command)
    assert status == 0 and "goes on from batch 31" in output, output
    assert_equal_weights(place / "run", weights(whole))
    # Batch 31 is within the second epoch; its means are those of all of it, on both ranks.
    times = ("train/images_per_second", "train/feedback_share")
    told = [[{n: v for n, v in row.items() if n not in times} for row in rows(f)] for f in (place / "run", whole)]
    assert told[0] == told[1] and any(row["train/loss_epoch"] for row in told[0])


# --- disks ------------------------------------------------------------------------------------------------------------


def test_a_full_disk_ends_all_ranks_and_spoils_no_checkpoint(place, whole):
    """The limit of a file's size stands for the disk: writing fails in the middle of the file, after the first two."""
    command = [*PLAIN, *COMMAND, *TWO, "--run-dir", "run", "--resume", "auto", "--checkpoint-every", "5"]
    status, output = run(place, command, "full 0 13")
    error = the_error(output)
    assert "step=00000015.ckpt: the checkpoint cannot be written" in error and "step=00000010.ckpt" in error
    assert status == 2
    names = {path.name for path in (place / "run" / "checkpoints").iterdir()}
    assert names == {"step=00000005.ckpt", "step=00000010.ckpt"}
    status, output = run(place, command)
    assert status == 0 and "goes on from batch 10" in output, output
    assert_equal_weights(place / "run", weights(whole))


@pytest.mark.parametrize("launcher", ["plain", "torchrun"])
def test_all_ranks_fall_back_to_the_same_checkpoint(launcher, place, whole):
    """Of a run of two ranks under either launcher; the damaged one is set aside, and one rank says so."""
    shutil.copytree(whole, place / "run")
    (place / "run" / "summary.json").unlink()
    damaged = place / "run" / "checkpoints" / "step=00000042.ckpt"
    os.truncate(damaged, 1000)
    start = PLAIN if launcher == "plain" else torchrun()
    status, output = run(place, [*start, *COMMAND, *TWO, "--run-dir", "run", "--resume", "auto"])
    assert status == 0, output
    assert output.count("warning: ") == 1 and "goes on from batch 21" in output
    assert damaged.with_suffix(".damaged").exists()
    assert_equal_weights(place / "run", weights(whole))


# --- another number of ranks ------------------------------------------------------------------------------------------

# Layers on ranks: the noise is that of one process, so that the number of ranks changes nothing but rounding.
BY_LAYERS = [*COMMAND, "--feedback-parallel", "layer"]


@pytest.fixture(scope="module")
def whole_by_layers(tmp_path_factory):
    """A run of one rank, which ends with the first of two epochs, and goes on without an interruption."""
    place = tmp_path_factory.mktemp("by-layers")
    (place / "faulty.py").write_text(RULE)
    command = [*PLAIN, *COMMAND, "--run-dir", "run", "--resume", "auto"]
    with children():
        assert run(place, [*command, "--max-steps", "13"])[0] == 0
        shutil.copytree(place / "run", place / "part")
        assert run(place, command)[0] == 0
    return place


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_run_of_one_rank_goes_on_with_several_and_back(ranks, place, whole_by_layers):
    shutil.copytree(whole_by_layers / "part", place / "run")
    # More ranks than cores are refused to a plain command.
    start = PLAIN if ranks == 2 else torchrun(ranks)
    command = ["--run-dir", "run", "--resume", "auto"]
    several = [*start, *BY_LAYERS, "--devices", str(ranks), *command, "--max-steps", "25"]
    status, output = run(place, several)
    assert status == 0 and "goes on from batch 13" in output, output
    assert json.loads((place / "run" / "summary.json").read_text())["world_size"] == ranks
    status, output = run(place, [*PLAIN, *COMMAND, *command])
    assert status == 0 and "goes on from batch 25" in output, output
    assert_equal_weights(place / "run", weights(whole_by_layers / "run"), 1e-9)


def test_a_run_of_two_ranks_with_images_each_goes_on_with_one_and_with_three(place, whole):
    """Other noise, hence other weights; but it trains as many batches, and learns as much."""
    shutil.copytree(whole, place / "run")
    (place / "run" / "summary.json").unlink()
    (place / "run" / "checkpoints" / "step=00000042.ckpt").unlink()
    command = [*COMMAND, "--run-dir", "run", "--resume", "auto"]
    status, output = run(place, [*torchrun(3), *command, "--devices", "3", "--max-steps", "30"])
    assert status == 0 and "goes on from batch 21" in output, output
    status, output = run(place, [*PLAIN, *command])
    assert status == 0 and "goes on from batch 30" in output, output
    found, expected = (json.loads((folder / "summary.json").read_text()) for folder in (place / "run", whole))
    assert (found["steps"], found["epochs"], found["world_size"]) == (42, 2, 1)
    assert found["test_accuracy"] == pytest.approx(expected["test_accuracy"], abs=0.1)


# --- the watch alone --------------------------------------------------------------------------------------------------

ALONE = """
import sys, time
sys.path.insert(0, {root!r})
from dtp.distributed.watch import Place, Watch
rank, port, what = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
watch = Watch(Place(rank, 3, "127.0.0.1", port, serves=rank == 0), limit=6, suspicious_limit=5).begin()
watch.tell(f"here{{rank}}", rank)
assert [watch.ask(f"here{{other}}") for other in range(3)] == [0, 1, 2]
while len(watch._peers) < 2:  # A rank that no sign of life was read of is not known to be there.
    time.sleep(0.05)
print("met", flush=True)
if what == "fail":
    time.sleep(1)  # Until the others have met too.
    watch.end(40 + rank, f"rank {{rank}} failed")
time.sleep(9 if what == "leave" else 60)
watch.leave()
"""


@contextmanager
def three(*what):
    """Three processes that do nothing but watch, once they have met."""
    port = free_port()
    script = ALONE.format(root=str(ROOT))
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(rank), str(port), what[rank]],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(3)
    ]
    try:
        for process in ranks:
            assert process.stdout.readline() == "met\n", process.stderr.read()
        yield ranks
    finally:
        for process in ranks:
            process.kill()
            # Waits, and closes what it would have said.
            process.communicate()


def ends(ranks, limit):
    """Statuses and messages of processes that must end within ``limit`` seconds."""
    deadline = time.monotonic() + limit
    said = [process.communicate(timeout=max(deadline - time.monotonic(), 0.1))[1] for process in ranks]
    return [process.returncode for process in ranks], "".join(said).splitlines()


def test_ranks_that_are_all_well_may_take_their_time():
    with three("leave", "leave", "leave") as ranks:
        assert ends(ranks, 60) == ([0, 0, 0], [])


def test_of_two_ranks_that_fail_at_once_one_speaks_and_all_end_with_its_status():
    with three("wait", "fail", "fail") as ranks:
        statuses, said = ends(ranks, 40)
    assert len(said) == 1 and statuses == [40 + int(re.match(r"rank (\d) failed", said[0])[1])] * 3


@pytest.mark.parametrize("silent", [0, 2])
def test_a_rank_that_keeps_its_connections_but_is_silent_counts_as_gone(silent):
    """As where a machine is cut off, and where a collective of NCCL would wait: nothing breaks, no error is raised."""
    with three("wait", "wait", "wait") as ranks:
        ranks[silent].send_signal(signal.SIGSTOP)
        statuses, said = ends([process for process in ranks if process is not ranks[silent]], 40)
    assert statuses == [1, 1] and len(said) == 1
    assert f"rank {silent} of 3" in said[0] and "has gone" in said[0]


def test_without_contact_to_rank_zero_no_other_rank_counts_as_silent():
    """Of those that are well the last sign is always a little older than the last contact."""
    watch = Watch(Place(2, 3, "127.0.0.1", 1, serves=False), limit=30)
    now = time.monotonic()
    watch._peers = {1: Peer("5 here 1", seen=now - 30.5), 0: Peer("6 here 0", seen=now - 29.9)}
    watch._contact = now - 29.9
    assert watch._silent(now) is None
    assert watch._silent(now + 0.2) == (0, "it no longer answers")
    watch._contact = now
    assert watch._silent(now) == (1, "no sign of life for 30 seconds")


def test_errors_of_a_lost_connection_are_told_from_others():
    lost = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1234")
    assert is_lost_connection(lost)
    assert not is_lost_connection(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    try:
        raise ValueError("later") from lost
    except ValueError as error:
        assert is_lost_connection(error)
    assert is_lost_connection(torch.distributed.DistBackendError("remote process exited"))
    try:
        try:
            raise lost
        except RuntimeError:
            raise ValueError("while it was handled")  # noqa: B904
    except ValueError as error:
        assert is_lost_connection(error)
