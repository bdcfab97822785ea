"""A writer of a bank, to be killed: python bank_writer.py BANK LEDGER OPERATIONS SEED.

The ledger gets a line before each operation and one after it. What an operation did before its second line may or may
not be in the bank when the writer was killed in between; what has its second line must be.
"""

from __future__ import annotations

import json
import os
import random
import sys

from speech_adapters.bank.bank import Bank
from speech_adapters.errors import InputError
from speech_adapters.saving.bank_layout import Facts


def facts(**changes: object) -> Facts:
    """Of a version that stands for itself alone."""
    values = {"kind": "adapter", "base": "tiny", "fingerprint": "ab", "method": "lora", "bytes": 1, "parameters": 1}
    return Facts(**(values | changes))


def keep(bank: Bank, name: str, content: bytes, **changes: object):
    """Have small files in a bank as a version."""
    files = {"adapter.json": content, "adapter_model.safetensors": content * 50}
    return bank.keep(files, name, facts(**changes), added="2026-01-31T00:00:00Z")


def main(folder: str, ledger: str, operations: int, seed: int) -> None:
    """Add, tag, promote, remove and collect at random, on names that both writers use."""
    draw, bank = random.Random(seed), Bank(folder)
    own: list[tuple[str, int]] = []
    with open(ledger, "a", encoding="utf-8") as file:

        def say(**line: object) -> None:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

        for number in range(operations):
            kind = draw.choice(["add"] * 6 + ["tag", "promote", "rm", "gc"] if own else ["add"])
            if kind == "add":
                name = draw.choice(["shared/a", "shared/b", f"own/{seed % 2}"])
                say(begin="add", name=name)
                found = keep(bank, name, f"{seed} {number}".encode())
                own.append((found.name, found.number))
                say(done="add", name=found.name, number=found.number, object=found.version.object)
            elif kind == "gc":
                say(begin="gc")
                bank.gc()
                say(done="gc")
            else:
                name, version = draw.choice(own)
                say(begin=kind, name=name, number=version)
                try:
                    if kind == "rm":
                        bank.remove(f"{name}@{version}")
                        own.remove((name, version))
                    elif kind == "tag":
                        bank.tag(f"{name}@{version}", draw.choice(["candidate", "tested"]))
                    else:
                        bank.promote(f"{name}@{version}")
                except InputError as error:
                    if kind != "rm" or "points at" not in str(error):  # a tag points at it
                        raise
                say(done=kind)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
