"""Bits flipped in the checkpoints that a run reads: it is noticed, and the run goes on from what is whole."""

from __future__ import annotations

import json
import random
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

from dtp.run.folder import newest_checkpoint
from tests.chaos.kills import command, end_state, identical, start, wait


def regions(path: Path) -> dict[str, list[tuple[int, int]]]:
    """The byte ranges (first, after the last) of a checkpoint, a zip archive, or of safetensors, by what lies there."""
    size = path.stat().st_size
    if path.suffix == ".safetensors":
        begin = 8 + struct.unpack("<Q", path.read_bytes()[:8])[0]
        return {"headers": [(0, begin)], "tensors": [(begin, size)]}
    found: dict[str, list[tuple[int, int]]] = {"headers": [], "pickle": [], "tensors": [], "other records": []}
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for record in archive.infolist():
            file.seek(record.header_offset + 26)
            name, extra = struct.unpack("<HH", file.read(4))
            begin = record.header_offset + 30 + name + extra
            kind = "pickle" if record.filename.endswith("data.pkl") else "tensors"
            kind = kind if kind == "pickle" or "/data/" in record.filename else "other records"
            found["headers"].append((record.header_offset, begin))
            if record.compress_size:
                found[kind].append((begin, begin + record.compress_size))
        found["directory"] = [(archive.start_dir, size)]
    return {name: ranges for name, ranges in found.items() if ranges}


def flip(path: Path, byte: int, bit: int) -> None:
    """Flip one bit of a file, and of no other name that it has."""
    content = bytearray(path.read_bytes())
    content[byte] ^= 1 << bit
    path.unlink()
    path.write_bytes(content)


def flip_bits(flips: int, seed: int, here: Path) -> dict[str, Any]:
    """Flip that many bits, one file and one region after the other, each in a fresh copy of a run.

    Files: the newest checkpoint of a run that was stopped, the best weights of one that is yet to be tested, and a
    checkpoint and a file of weights that another run starts from (--init-weights).

    Returns:
        Counts: flips; noticed (the run says so, and goes on from what is whole or refuses); harmless (nothing is said,
        and weights and test are the same in the end); silent (others, and nothing is said); hangs; by file and region.
    """
    draw = random.Random(seed)
    whole, stopped, started, log = here / "whole", here / "stopped", here / "started", here / "flips.log"
    words = command("dtp")
    done: dict[str, Any] = {
        "flips": 0,
        "noticed": 0,
        "harmless": 0,
        "silent": 0,
        "hangs": 0,
        "files": {},
        "regions": {},
        "wrong": [],
    }
    from_another = ["--init-weights", str(whole)]
    for folder, more in ((whole, []), (stopped, ["--max-steps", "8"]), (started, from_another)):
        if wait(start([*words, *more, "--run-dir", str(folder)], log)) != 0:
            done["wrong"].append(f"a run that nobody damaged failed; see {log}")
            return done
    # By file: whose copy is damaged, and the run that one without damage would equal.
    files = {
        "newest checkpoint": (stopped, whole),
        "best weights": (whole, whole),
        "--init-weights": (whole, started),
        "--init-weights weights.safetensors": (whole, started),
    }
    for number in range(flips):
        file = list(files)[number % len(files)]
        source, expected = files[file]
        damaged, log = here / f"flip-{number}", here / f"flip-{number}.log"
        shutil.copytree(source, damaged)
        (damaged / "summary.json").unlink()
        others = {"best weights": "checkpoints/best.ckpt", "--init-weights weights.safetensors": "weights.safetensors"}
        path = damaged / others[file] if file in others else newest_checkpoint(damaged)
        places = regions(path)
        region = list(places)[number // len(files) % len(places)]
        first, after = draw.choice(places[region])
        byte, bit = draw.randrange(first, after), draw.randrange(8)
        flip(path, byte, bit)
        starts_another = expected == started
        folder = here / f"flip-{number}-started" if starts_another else damaged
        more = ["--init-weights", str(path)] if starts_another else ["--resume", "auto"]
        status = wait(start([*words, *more, "--run-dir", str(folder)], log))
        said = log.read_text(errors="replace")
        told = "warning: " in said or (status == 2 and "error: " in said)
        same = status == 0 and identical(end_state(folder), end_state(expected))
        if status is None:
            how = "hangs"
        elif told and "Traceback" not in said and (same or status == 2):
            how = "noticed"
        else:
            how = "harmless" if same and tested(folder) == tested(expected) else "silent"
        done["flips"] += 1
        done[how] += 1
        for kind, name in (("files", file), ("regions", region)):
            counts = done[kind].setdefault(name, {})
            counts[how] = counts.get(how, 0) + 1
        if how in ("silent", "hangs"):
            done["wrong"].append(f"bit {bit} of byte {byte} ({file}, {region}): {how}, status {status}")
        shutil.rmtree(damaged)
        shutil.rmtree(folder, ignore_errors=True)
    return done


def tested(folder: Path) -> dict[str, Any]:
    """What the summary of a run says of its test."""
    summary = json.loads((folder / "summary.json").read_text())
    return {name: summary[name] for name in ("test_loss", "test_accuracy", "tested_weights")}
