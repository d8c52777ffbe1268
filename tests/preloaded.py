"""Python processes that begin with torch, Lightning and dtp imported: forked from one process that did it once.

For tests of what whole processes do later than that; test_program.py, test_readme.py, test_slurm_cluster.py and others
start Python as users do. Each is a process of its own and a real child of the one that starts it, with its own
arguments, environment, folder, streams and session; so are those that it starts itself (ranks, runs of a sweep): beside
it waits a process that stays as new, of which its own children are forked, and which ends with it.
"""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import gc
import importlib
import json
import os
import pkgutil
import runpy
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent
_PR_SET_CHILD_SUBREAPER = 36
_execute = subprocess.Popen._execute_child
_lock = threading.Lock()
# Of this process: the socket to what forks its children, and its number, since forks inherit the socket.
_server: tuple[socket.socket, int] | None = None
# Whether runs in the processes that are forked draw their figures.
drawn = True


@contextmanager
def children() -> Iterator[None]:
    """Within it ``subprocess`` forks what is to be another Python, unless ``executable`` or ``preexec_fn`` is given.

    On other systems than Linux, which alone lets a process adopt another, it starts one as ever.
    """
    if sys.platform != "linux":
        yield
        return
    if _server is None:
        ours, theirs = socket.socketpair()
        # Of a Python that runs nothing itself, and ends with the socket.
        code = f"from tests import preloaded; preloaded.import_all(); preloaded.serve({theirs.fileno()})"
        # torch reads its variable when it is loaded; a run sets it before.
        environ = {**os.environ, "PYTHONPATH": str(ROOT), "TORCH_CPP_LOG_LEVEL": "ERROR"}
        command, kept = [sys.executable, "-c", code], [theirs.fileno()]
        subprocess.Popen(command, env=environ, pass_fds=kept, start_new_session=True).returncode = 0
        theirs.close()
        _serve_me(ours)
    before = subprocess.Popen._execute_child
    subprocess.Popen._execute_child = _execute_child
    try:
        yield
    finally:
        subprocess.Popen._execute_child = before


def _serve_me(server: socket.socket) -> None:
    global _server
    _server = server, os.getpid()
    atexit.register(server.close)


def _adopt_orphans(yes: bool) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(yes), 0, 0, 0)


def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *others) -> None:
    """In the place of subprocess.Popen's own, of the same arguments."""
    words = [os.fsdecode(word) for word in ([args] if isinstance(args, (str, bytes, os.PathLike)) else args)]
    if words[0] != sys.executable or executable or preexec_fn or _server[1] != os.getpid():
        return _execute(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *others)
    pipes, new_session = others[3:9], others[14]
    read, _, _, written, _, errors = pipes
    given = {number: pipe if pipe >= 0 else number for number, pipe in enumerate((read, written, errors))}
    given |= {number: number for number in pass_fds}
    request = {
        "words": words[1:],
        "folder": os.path.abspath(cwd or os.curdir),
        "environ": {os.fsdecode(k): os.fsdecode(v) for k, v in (os.environ if env is None else env).items()},
        "session": new_session,
        "drawn": drawn,
        "parent": os.getpid(),
        "numbers": list(given),
    }
    data = json.dumps(request).encode()
    with _lock:
        # The parent of the new process has ended when its number comes, so that this one is its parent.
        _adopt_orphans(True)
        try:
            socket.send_fds(_server[0], [len(data).to_bytes(8, "big")], list(given.values()))
            _server[0].sendall(data)
            self.pid = int.from_bytes(_server[0].recv(8, socket.MSG_WAITALL), "big")
        finally:
            _adopt_orphans(False)
    self._child_created = True
    self._close_pipe_fds(*pipes)


def import_all() -> None:
    """What runs and their launchers import."""
    gc.disable()
    import lightning.pytorch  # noqa: F401
    import matplotlib.backends.backend_agg  # noqa: F401
    import optuna  # noqa: F401
    import sklearn.datasets  # noqa: F401
    import torch.distributed.run  # noqa: F401
    import wandb  # noqa: F401

    import dtp

    for module in pkgutil.walk_packages(dtp.__path__, "dtp."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    from dtp.run import provenance
    from tests.cheap import make_runs_cheap

    make_runs_cheap()
    provenance.commit()
    warm_up()
    # Of the memory that children share, collections leave this alone.
    gc.freeze()
    gc.enable()


def warm_up() -> None:
    """Do what the first run of each process would do: a third of a short one's time."""
    import sklearn.datasets
    import torch.utils.serialization.config  # noqa: F401

    from dtp.cli.arguments import parse

    sklearn.datasets.load_digits()
    for rule in ("bp", "dtp"):
        parse(["--algo", rule, "--model", "mlp", "--data", "digits"])


def serve(number: int) -> None:
    """Fork a process for each request until the other end closes; returns never, but runs the program in the child."""
    server = socket.socket(fileno=number)
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(signum, signal.SIG_IGN)
    while True:
        length, files, _, _ = socket.recv_fds(server, 8, 64)
        if not length:
            os._exit(0)
        request = json.loads(server.recv(int.from_bytes(length, "big"), socket.MSG_WAITALL))
        told, tell = os.pipe()
        between = os.fork()
        if between == 0:
            os.close(told)
            child = os.fork()
            if child == 0:
                os.close(tell)
                return _become(request, files, server)
            os.write(tell, child.to_bytes(8, "big"))
            os._exit(0)
        os.close(tell)
        child = os.read(told, 8)
        os.close(told)
        # Only then is it the child of whom it is for.
        os.waitpid(between, 0)
        server.sendall(child)
        for file in files:
            os.close(file)


def _become(request: dict, files: list[int], server: socket.socket) -> None:
    server.close()
    if request["session"]:
        os.setsid()
    ours, theirs = socket.socketpair()
    # Above those numbers that the program shall find its files under.
    ours, theirs = (socket.socket(fileno=_above(end.detach())) for end in (ours, theirs))
    if os.fork() == 0:
        ours.close()
        for file in files:
            os.close(file)
        return serve(theirs.detach())
    theirs.close()
    files = [_above(file) for file in files]
    for file, number in zip(files, request["numbers"], strict=True):
        os.dup2(file, number)
        os.close(file)
    _serve_me(ours)
    while os.getppid() != request["parent"] and Path(f"/proc/{request['parent']}").exists():
        os.sched_yield()
    _run(request)


def _above(file: int) -> int:
    moved = fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, 500)
    os.close(file)
    return moved


def _run(request: dict) -> None:
    """As the interpreter does from its first moment, for python [-u] [-c CODE | -m MODULE | SCRIPT] WORDS."""
    global drawn
    drawn = request["drawn"]
    if not drawn:
        from tests.cheap import leave_undrawn

        leave_undrawn(_set)
    for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(signum, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environ"])
    # Lightning finds this when it is imported.
    from lightning.fabric.utilities.rank_zero import _get_rank, rank_zero_only

    rank_zero_only.rank = _get_rank() or 0
    subprocess.Popen._execute_child = _execute_child
    words = request["words"]
    unbuffered = words[0] == "-u"
    words = words[unbuffered:]
    sys.stdout.reconfigure(line_buffering=sys.stdout.isatty(), write_through=unbuffered)
    # The server's own: the first for -c, the second of PYTHONPATH.
    sys.path[:2] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        sys.path.insert(0, "")
        scope = {"__name__": "__main__", "__spec__": None, "__builtins__": __builtins__}
        exec(compile(words[1], "<string>", "exec"), scope)
    elif words[0] == "-m":
        sys.argv = words[1:]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        sys.path.insert(0, os.path.dirname(os.path.abspath(words[0])))
        runpy.run_path(words[0], run_name="__main__")


def _set(place: str, value: object) -> None:
    module, name = place.rsplit(".", 1)
    setattr(importlib.import_module(module), name, value)
