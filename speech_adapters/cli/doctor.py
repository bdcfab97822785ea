"""Look at this machine: versions, processors, hub, disk, and traps that are known.

Exit code 2 where something will not work; what only costs speed or comfort is marked with a question mark.
"""

from __future__ import annotations

import argparse
import locale
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from speech_adapters.errors import counted
from speech_adapters.precision import X86, cpu_has_bfloat16


class Finding(NamedTuple):
    """A line: ``mark`` is " " for what is fine, "?" for what is worth knowing, "!" for what will not work."""

    mark: str
    topic: str
    text: str


EXTRAS = {
    "flashlight": "beam search with a word language model: pip install 'speech-adapters[decode]'",
    "silero_vad": "voice activity in long recordings: pip install 'speech-adapters[vad]'",
    "pyarrow": "Hugging Face tables: pip install 'speech-adapters[datasets]'",
}
"""Optional module -> what it is for and how it is installed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It takes none."""


def run(arguments: argparse.Namespace) -> int:
    """Print all findings, by topic."""
    findings = [*versions(), *processors(), *hub(), *disk(), *traps()]
    last = ""
    for mark, topic, text in findings:
        print(f"{mark} {'' if topic == last else topic:10} {text}")
        last = topic
    count = sum(mark == "!" for mark, _, _ in findings)
    print(f"\n{count} things will not work" if count else "\nnothing in the way")
    return 2 if count else 0


def versions() -> Iterator[Finding]:
    """What is installed, held against what the package asks for."""
    from packaging.requirements import Requirement

    yield Finding(" ", "versions", f"python {platform.python_version()}, {platform.platform()}")
    try:
        asked, own = requires("speech-adapters") or [], version("speech-adapters")
    except PackageNotFoundError:
        yield Finding("?", "versions", "speech-adapters is not installed, but found in the path: pip install -e .")
        return
    shown = [f"speech-adapters {own}"]
    for text in asked:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            yield Finding("!", "versions", f"{requirement.name} is missing: pip install '{requirement}'")
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            yield Finding("!", "versions", f"{requirement.name} {found}, tested with {requirement.specifier}")
        elif requirement.name in ("torch", "torchaudio", "transformers", "peft", "numpy"):
            shown.append(f"{requirement.name} {found}")
    yield Finding(" ", "versions", ", ".join(shown))
    for module, purpose in EXTRAS.items():
        if find_spec(module) is None:
            yield Finding("?", "versions", f"without {module}: {purpose}")


def processors() -> Iterator[Finding]:
    """CPU, memory, GPUs."""
    import torch

    bf16 = (", bf16" if cpu_has_bfloat16() else ", no bf16") if platform.machine() in X86 else ""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = counted(torch.get_num_threads(), "thread")
    yield Finding(" ", "CPU", f"{platform.machine()}, {counted(cores, 'core')}, {threads}{_memory()}{bf16}")
    if torch.get_num_threads() > cores:
        yield Finding("?", "CPU", f"more threads than cores are slow: set OMP_NUM_THREADS={cores}")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(index)
            bf16 = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bf16"
            yield Finding(" ", "GPU", f"cuda:{index} {card.name}, {card.total_memory / 1e9:.0f} GB, {bf16}")
    elif shutil.which("nvidia-smi"):
        built = f"torch {torch.__version__} is built for {torch.version.cuda or 'the CPU alone'}"
        yield Finding("?", "GPU", f"the machine has a driver, but torch finds no GPU: {built}")
    else:
        yield Finding(" ", "GPU", "none; everything runs on the CPU")


def hub() -> Iterator[Finding]:
    """Whether encoders can be fetched."""
    from huggingface_hub import constants

    from speech_adapters.encoders.hub import is_reachable
    from speech_adapters.encoders.shipped import packaged_encoders

    packaged = f"packaged encoders ({', '.join(packaged_encoders())}) need no network"
    if constants.HF_HUB_OFFLINE:
        yield Finding("?", "hub", f"HF_HUB_OFFLINE is set: only what is in {constants.HF_HUB_CACHE}; {packaged}")
    elif is_reachable(constants.ENDPOINT):
        yield Finding(" ", "hub", f"{constants.ENDPOINT} answers; kept in {constants.HF_HUB_CACHE}")
    else:
        yield Finding("?", "hub", f"{constants.ENDPOINT} cannot be reached; {packaged}")


def disk() -> Iterator[Finding]:
    """Room where things are written, and whether they can be."""
    from speech_adapters.data.audio_files import cache_folder

    for what, folder in (("runs, here", Path.cwd()), ("cache", cache_folder())):
        place = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(place).free / 1e9
        if not os.access(place, os.W_OK):
            yield Finding("!", "disk", f"{what}: {folder} cannot be written to")
        else:
            yield Finding("?" if free < 5 else " ", "disk", f"{what}: {free:.1f} GB free in {folder}")


def traps() -> Iterator[Finding]:
    """What has cost others an afternoon."""
    import soundfile

    if "MP3" not in soundfile.available_formats():
        found = soundfile.__libsndfile_version__
        yield Finding("!", "traps", f"libsndfile {found} reads no MP3: pip install -U soundfile")
    if (locale.getpreferredencoding(False) or "").lower().replace("-", "") != "utf8" and not sys.flags.utf8_mode:
        yield Finding("?", "traps", "the terminal is not UTF-8: transcripts may fail to print; set PYTHONUTF8=1")
    memory = Path("/dev/shm")
    if memory.is_dir() and shutil.disk_usage(memory).total < 1e9:
        size = shutil.disk_usage(memory).total / 1e6
        remedy = "training.workers above 0 may die of it; give docker more with --shm-size"
        yield Finding("?", "traps", f"/dev/shm holds {size:.0f} MB: {remedy}")
    if os.environ.get("CUDA_LAUNCH_BLOCKING") == "1":
        yield Finding("?", "traps", "CUDA_LAUNCH_BLOCKING=1 makes training several times slower; unset it")
    for name in ("HF_HOME", "SPEECH_ADAPTERS_CACHE", "SPEECH_ADAPTERS_DATA"):
        if (value := os.environ.get(name)) and not Path(value).is_dir():
            yield Finding("?", "traps", f"{name}={value}: no such folder")


def _memory() -> str:
    try:
        return f", {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f} GB of memory"
    except (ValueError, OSError, AttributeError):
        return ""
