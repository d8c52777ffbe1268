"""A disk that fills up during a run and then has room again: one sentence, then the same weights in the end."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from tests.chaos.kills import command, end_state, identical, start, wait


def fill_disks(sizes: tuple[int, ...], here: Path) -> dict[str, Any]:
    """Runs on file systems in memory of so many KiB. Where none can be mounted, only the reason is returned."""
    done: dict[str, Any] = {"disks": 0, "survived": 0, "hangs": 0, "wrong": []}
    words = command("dtp")
    wait(start([*words, "--run-dir", str(here / "whole")], here / "whole.log"))
    expected = end_state(here / "whole")
    for size in sizes:
        disk, log = here / f"disk-{size}", here / f"disk-{size}.log"
        disk.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", disk], capture_output=True)
        if mounted.returncode:
            return {"skipped": mounted.stderr.decode(errors="replace").strip() or "mount is refused"}
        try:
            run = [*words, "--run-dir", str(disk / "run"), "--resume", "auto"]
            status, said = wait(start(run, log)), log.read_text(errors="replace")
            done["disks"] += 1
            done["hangs"] += status is None
            told = status == 2 and said.count("error: ") == 1 and "Traceback" not in said
            subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
            again = wait(start(run, log))
            done["hangs"] += again is None
            if (told or status == 0) and again == 0 and identical(end_state(disk / "run"), expected):
                done["survived"] += 1
            else:
                last = log.read_text(errors="replace").strip().splitlines()[-1]
                done["wrong"].append(f"{size} KiB: status {status}, then {again}: {last[:200]}")
        finally:
            subprocess.run(["umount", disk], check=False)
    return done
