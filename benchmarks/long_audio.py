"""An hour of real speech in one file: memory, speed, and its transcript against those of its utterances by themselves.

    python benchmarks/long_audio.py --manifest test.jsonl --adapter runs/asr_librispeech/latest/adapters/elp

Utterances of the manifest are joined with pauses of 0.4 to 2 s of faint noise at each one's own floor. The command
line transcribes that file, in a process of its own, through windows of several lengths; the utterances are transcribed
one forward each by the evaluation's own loop. Printed are peak memory, wall and CPU time, WER against the same texts,
how many words change with the length of windows, and how far the times of words (those that both texts have in common)
lie from those of the utterances by themselves.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
import soundfile

from speech_adapters.data.audio import SAMPLE_RATE
from speech_adapters.data.manifest import Manifest
from speech_adapters.heads.decoding import Segment, greedy_decode_with_timestamps
from speech_adapters.metrics.wer import word_error_rate
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.tasks.predict import predict


def join(manifest: Manifest, seconds: float, path: Path, seed: int = 0) -> tuple[Manifest, list[float]]:
    """Write about ``seconds`` of utterances with pauses; returns them and where each starts."""
    rng = np.random.default_rng(seed)
    starts, place = [], 0
    with soundfile.SoundFile(path, "w", SAMPLE_RATE, 1, "PCM_16") as file:
        for utterance in manifest:
            if place >= seconds * SAMPLE_RATE:
                break
            samples = utterance.waveform().numpy()
            levels = np.sqrt(np.square(samples[: len(samples) // 320 * 320].reshape(-1, 320)).mean(1))
            noise = rng.normal(0, max(float(np.percentile(levels, 5)), 1e-5), int(rng.uniform(0.4, 2.0) * SAMPLE_RATE))
            starts.append(place / SAMPLE_RATE)
            for part in (samples, noise.astype(np.float32)):
                file.write(part)
                place += len(part)
    return manifest[: len(starts)], starts


def transcribe(arguments: argparse.Namespace, audio: Path, window: float, threads: int) -> dict[str, object]:
    """What the command line says of a file, and what that took."""
    command = [sys.executable, "-m", "speech_adapters.cli", "transcribe", str(audio), "--format=json"]
    command += [f"--adapter={arguments.adapter}", f"--window={window}", f"--voice-activity={arguments.voice_activity}"]
    command += [f"--pause={arguments.pause}", f"--precision={arguments.precision}"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr)
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {**json.loads(done.stdout), "wall": wall, "cpu": cpu, "peak": after.ru_maxrss / 1024**2}  # KiB on Linux


def matched(one: list[Segment], other: list[Segment]) -> list[tuple[Segment, Segment]]:
    """The words that two texts have in common, in order."""
    blocks = SequenceMatcher(
        None, [w.text for w in one], [w.text for w in other], autojunk=False
    ).get_matching_blocks()
    return [(one[b.a + i], other[b.b + i]) for b in blocks for i in range(b.size)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", required=True, help="utterances with text")
    parser.add_argument("--adapter", required=True, help="folder of a saved adapter, or of a run")
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--windows", type=float, nargs="+", default=[20.0, 15.0, 30.0])
    parser.add_argument("--voice-activity", default="energy", choices=["energy", "silero", "none"])
    parser.add_argument("--pause", type=float, default=0.5)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", help="where the joined file is kept; a temporary folder by default")
    arguments = parser.parse_args()

    manifest = Manifest.read(arguments.manifest, require=("text",))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.folder or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        audio = folder / "joined.flac"
        manifest, starts = join(manifest, arguments.seconds, audio)
        length = soundfile.info(audio).duration
        print(f"{len(manifest)} utterances, {length:.0f} s with pauses", flush=True)
        long = {window: transcribe(arguments, audio, window, arguments.threads) for window in arguments.windows}

    model = SpeechAdapterModel.from_adapter(arguments.adapter)
    vocabulary = model.head.config.vocabulary
    found = predict(
        model, manifest, lambda output: greedy_decode_with_timestamps(output.logits, output.frame_lengths, vocabulary)
    ).values
    alone = [
        Segment(word.text, word.start + start, word.end + start, word.confidence)
        for start, text in zip(starts, found, strict=True)
        for word in text.words
    ]
    texts, normalizer = [str(utterance.text) for utterance in manifest], model.head.config.normalizer
    by_utterance = word_error_rate(texts, [text.text for text in found], normalizer=normalizer).wer.value
    print(f"utterances by themselves: WER {100 * by_utterance:.2f} %")
    first = next(iter(long.values()))["text"]
    for window, said in long.items():
        wer = word_error_rate([" ".join(texts)], [said["text"]], normalizer=normalizer).wer.value
        changed = word_error_rate([first], [said["text"]], normalizer="none").wer.value
        words = [Segment(**word) for segment in said["segments"] for word in segment["words"]]
        pairs = matched(alone, words)
        near = [
            np.mean([abs(getattr(a, end) - getattr(b, end)) <= 0.08 for a, b in pairs]) for end in ("start", "end")
        ]
        print(
            f"windows of {window:g} s: WER {100 * wer:.2f} % ({100 * (wer / by_utterance - 1):+.2f} % relative); "
            f"{100 * changed:.2f} % of words unlike those of {next(iter(long)):g} s; of {len(pairs)} words in common "
            f"{100 * near[0]:.1f} % start and {100 * near[1]:.1f} % end within 80 ms; "
            f"{said['wall']:.0f} s ({length / said['wall']:.1f} times real time), {said['cpu']:.0f} s of CPU "
            f"({length / said['cpu']:.1f} times on one core), peak of all so far {said['peak']:.2f} GiB",
            flush=True,
        )


if __name__ == "__main__":
    main()
