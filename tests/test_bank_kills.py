"""Two writers on one bank, killed at random moments: nothing that was done is lost, and nothing is broken.

BANK_OPERATIONS (of each writer) and BANK_KILLS say how much; a release is measured with 200 and 50.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from killing import rubbish

from speech_adapters.bank.bank import Bank

OPERATIONS = int(os.environ.get("BANK_OPERATIONS", "15"))
KILLS = int(os.environ.get("BANK_KILLS", "3"))
WRITER = Path(__file__).with_name("bank_writer.py")


def lines(ledger: Path) -> list[dict]:
    found = []
    for line in ledger.read_text().splitlines() if ledger.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:  # torn by a kill
            continue
    return found


@pytest.mark.slow
def test_two_killed_writers_lose_nothing(tmp_path: Path) -> None:
    bank, draw = Bank.create(tmp_path / "bank"), random.Random(1)
    ledgers = [tmp_path / "ledger-0", tmp_path / "ledger-1"]
    running: list[subprocess.Popen | None] = [None, None]
    kills, starts = 0, 0

    def done(which: int) -> int:
        return sum("done" in line for line in lines(ledgers[which]))

    def start(which: int) -> subprocess.Popen:
        nonlocal starts
        starts += 1
        left = max(OPERATIONS - done(which), 2)
        arguments = [str(bank.folder), str(ledgers[which]), str(left), str(2 * starts + which)]
        return subprocess.Popen([sys.executable, str(WRITER), *arguments], stderr=subprocess.PIPE)

    while kills < KILLS or any(done(which) < OPERATIONS for which in (0, 1)):
        for which in (0, 1):
            process = running[which]
            if process is not None and process.poll() is not None:
                assert process.returncode == 0, process.stderr.read().decode()
                running[which] = None
            if running[which] is None and (done(which) < OPERATIONS or kills < KILLS):
                running[which] = start(which)
        time.sleep(draw.uniform(0.05, 0.9))
        which = draw.randrange(2)
        process = running[which]
        if kills < KILLS and process is not None and process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
            running[which] = None
            kills += 1
    for process in filter(None, running):
        assert process.wait(60) == 0, process.stderr.read().decode()

    assert bank.verify() == []
    every = [line for ledger in ledgers for line in lines(ledger)]
    added = {(line["name"], line["number"]): line["object"] for line in every if line.get("done") == "add"}
    assert len(added) == sum(line.get("done") == "add" for line in every)  # no number was given twice
    removed = {(line["name"], line["number"]) for line in every if line.get("begin") == "rm"}
    there = {(found.name, found.number): found.version.object for found in bank.index().versions(every=True)}
    lost = {key: digest for key, digest in added.items() if key not in removed and there.get(key) != digest}
    assert not lost
    begun = {line["name"] for line in every if line.get("begin") == "add"}
    assert {name for name, _ in there} <= begun
    bank.gc()
    assert rubbish(bank.folder) == []
    named = {found.version.object for found in bank.index().versions(every=True)}
    assert {path.name for path in (bank.folder / "objects").iterdir()} == named
    print(f"{len(every)} lines, {kills} kills, {len(there)} versions")
