"""Bits flipped in the newest checkpoint of a run: it is noticed, and the run goes on from the checkpoint before."""

from __future__ import annotations

import random
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

from dtp.runs import newest_checkpoint
from tests.chaos.kills import command, end_state, identical, start, wait


def regions(path: Path) -> dict[str, list[tuple[int, int]]]:
    """The byte ranges (first, after the last) of a checkpoint, which is a zip archive, by what lies there."""
    size = path.stat().st_size
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
    """Flip that many bits, one region after the other, each in the newest checkpoint of a fresh copy of a run.

    Returns:
        Counts: flips; noticed (the run says so, and goes on from the one before or refuses); harmless (nothing is said,
        and the weights in the end are the same); silent (other weights, and nothing is said); hangs; and by region.
    """
    draw = random.Random(seed)
    whole, stopped, log = here / "whole", here / "stopped", here / "flips.log"
    words = command("dtp")
    done: dict[str, Any] = {
        "flips": 0,
        "noticed": 0,
        "harmless": 0,
        "silent": 0,
        "hangs": 0,
        "regions": {},
        "wrong": [],
    }
    for folder, more in ((whole, []), (stopped, ["--max-steps", "8"])):
        if wait(start([*words, *more, "--run-dir", str(folder)], log)) != 0:
            done["wrong"].append(f"a run that nobody damaged failed; see {log}")
            return done
    expected = end_state(whole)
    places = regions(newest_checkpoint(stopped))
    for number in range(flips):
        region = list(places)[number % len(places)]
        first, after = draw.choice(places[region])
        byte, bit = draw.randrange(first, after), draw.randrange(8)
        folder, log = here / f"flip-{number}", here / f"flip-{number}.log"
        shutil.copytree(stopped, folder)
        (folder / "summary.json").unlink()
        flip(newest_checkpoint(folder), byte, bit)
        status = wait(start([*words, "--run-dir", str(folder), "--resume", "auto"], log))
        said = log.read_text(errors="replace")
        told = "warning: " in said or (status == 2 and "error: " in said)
        same = status == 0 and identical(end_state(folder), expected)
        if status is None:
            how = "hangs"
        elif told and "Traceback" not in said and (same or status == 2):
            how = "noticed"
        else:
            how = "harmless" if same else "silent"
        done["flips"] += 1
        done[how] += 1
        counts = done["regions"].setdefault(region, {})
        counts[how] = counts.get(how, 0) + 1
        if how in ("silent", "hangs"):
            done["wrong"].append(f"bit {bit} of byte {byte} ({region}): {how}, status {status}")
        shutil.rmtree(folder)
    return done
