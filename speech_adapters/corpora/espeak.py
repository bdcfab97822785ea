"""Speech from eSpeak NG, whose library and data come in the PyPI wheel ``espeakng-loader``.

eSpeak keeps state from one utterance to the next (its flutter and noise), which not even re-initialising clears: the
same sentence sounds slightly different the second time. So every call of :func:`synthesize` runs this file in a fresh
process that speaks the whole list in its order: same list, same samples. The file imports nothing of the package, so
that the process starts at once.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

# Values of eSpeak's speak_lib.h.
AUDIO_OUTPUT_SYNCHRONOUS, INITIALIZE_DONT_EXIT = 2, 0x8000
CHARS_UTF8, POS_CHARACTER = 1, 1
RATE, VOLUME, PITCH, RANGE = 1, 2, 3, 4
LONGEST_DATA_PATH = 140
"""Characters; eSpeak copies the path into a buffer of 160."""


@dataclass(frozen=True)
class Spoken:
    """One thing to say.

    ``voice`` is a language and a variant (``"en-us+f2"``), ``rate`` counts words per minute (80 to 450), ``pitch`` and
    ``range`` are in eSpeak's units (0 to 99; 50 is the voice's own), ``volume`` is in percent.
    """

    text: str
    voice: str
    rate: int = 160
    pitch: int = 50
    range: int = 50
    volume: int = 60


class EspeakError(RuntimeError):
    """eSpeak cannot be loaded or refuses a job."""


def synthesize(jobs: Sequence[Spoken]) -> Generator[tuple[int, np.ndarray]]:
    """Yield ``(sample rate in Hz, (samples,) int16 array)`` for each job, in order, as the process speaks.

    Raises:
        EspeakError: eSpeak cannot be loaded or refuses a voice.
    """
    with tempfile.TemporaryFile() as errors:
        # -P: this file's folder must not become an import path.
        process = subprocess.Popen(
            [sys.executable, "-P", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
        )
        assert process.stdin is not None and process.stdout is not None
        try:
            with process.stdin as pipe:  # the process reads all before it speaks: neither side can block the other
                pipe.write(json.dumps([asdict(job) for job in jobs]).encode())
            for _ in jobs:
                header = process.stdout.read(8)
                if len(header) < 8:
                    process.wait()
                    errors.seek(0)
                    lines = errors.read().decode(errors="replace").strip().splitlines() or ["no message"]
                    raise EspeakError(f"eSpeak NG stopped: {lines[-1].removeprefix('__main__.EspeakError: ')}")
                rate, size = struct.unpack("<II", header)
                yield rate, np.frombuffer(process.stdout.read(size), dtype="<i2")
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def _main() -> None:
    """Read the jobs from stdin; write each as rate, number of bytes, samples to stdout."""
    import espeakng_loader

    jobs = [Spoken(**job) for job in json.load(sys.stdin)]
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    data = espeakng_loader.get_data_path()
    folder = None
    if len(data) > LONGEST_DATA_PATH:
        folder = tempfile.mkdtemp()
        data = shutil.copytree(data, Path(folder) / "espeak-ng-data")
    try:
        for rate, samples in _speak(library, data, jobs):
            sys.stdout.buffer.write(struct.pack("<II", rate, samples.nbytes) + samples.tobytes())
        sys.stdout.buffer.flush()
    finally:
        if folder:
            shutil.rmtree(folder)


def _speak(
    library: ctypes.CDLL, data: str | os.PathLike[str], jobs: Sequence[Spoken]
) -> Iterator[tuple[int, np.ndarray]]:
    chunks: list[np.ndarray] = []

    def collect(samples: ctypes._Pointer[ctypes.c_short], count: int, _events: int | None) -> int:
        if count > 0:
            chunks.append(np.ctypeslib.as_array(samples, (count,)).astype("<i2"))
        return 0

    # Kept in a variable: eSpeak calls it for as long as it speaks.
    callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)(collect)
    path = os.fsencode(data)
    rate = library.espeak_Initialize(AUDIO_OUTPUT_SYNCHRONOUS, 0, path, INITIALIZE_DONT_EXIT)
    if rate <= 0:
        raise EspeakError(f"no eSpeak data in {os.fsdecode(path)}")
    library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # else the breath of breathy voices follows the clock
    library.espeak_SetSynthCallback(callback)
    for job in jobs:
        variant = job.voice.partition("+")[2]
        known = (Path(data) / "voices" / "!v" / variant).exists()  # eSpeak passes over unknown ones without a word
        if not known or library.espeak_SetVoiceByName(job.voice.encode()) != 0:
            raise EspeakError(f"eSpeak has no voice {job.voice!r}")
        for parameter, value in ((RATE, job.rate), (VOLUME, job.volume), (PITCH, job.pitch), (RANGE, job.range)):
            library.espeak_SetParameter(parameter, value, 0)
        chunks.clear()
        text = job.text.encode()
        library.espeak_Synth(text, ctypes.c_size_t(len(text) + 1), 0, POS_CHARACTER, 0, CHARS_UTF8, None, None)
        library.espeak_Synchronize()
        if not chunks:
            raise EspeakError(f"eSpeak said nothing for {job.text!r} with voice {job.voice!r}")
        yield rate, np.concatenate(chunks)


if __name__ == "__main__":
    _main()
