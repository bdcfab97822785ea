"""How long after a word was spoken does the live server tell it, and does the end say what the whole recording says?

    python benchmarks/live.py --adapter runs/asr_librispeech/latest --manifest test.jsonl --recordings 6

Sends recordings of 10 to 30 s, of other speakers as far as there are, to ``WS /v1/realtime`` in pieces of 100 ms, as
fast as they were spoken, and notes when words come back. When a word was spoken is what the offline transcript of the
whole recording says. Prints JSON: seconds from the end of the first word, and from that of each word, to the message
that holds it; seconds from the last piece to the final text; and how many words of the final text differ from the
offline transcript's (insertions, deletions and substitutions by its number of words).
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import websockets
from serving import serving

from speech_adapters.data.manifest import Manifest, Utterance
from speech_adapters.metrics.wer import word_error_rate
from speech_adapters.model import SpeechAdapterModel

PIECE = 0.1
RATE = {"type": "audio/pcm", "rate": 16000}
SESSION = {"type": "transcription", "audio": {"input": {"format": RATE, "turn_detection": None}}}


def chosen(manifest: Manifest, count: int) -> list[Utterance]:
    """One of each speaker in turn."""
    long = [utterance for utterance in manifest if 10 <= utterance.duration <= 30]
    turns: dict[str, int] = {}
    for utterance in long:
        turns[str(utterance.speaker)] = turns.get(str(utterance.speaker), 0) + 1
        utterance.extra["turn"] = turns[str(utterance.speaker)]
    return sorted(long, key=lambda utterance: utterance.extra["turn"])[:count]


async def speak(address: str, name: str, samples: np.ndarray) -> tuple[list[tuple[float, str]], str, float]:
    """Words with when each came, the final text, and how long it took after the last piece."""
    data = (samples * 32768).round().clip(-32768, 32767).astype("<i2").tobytes()
    step = round(PIECE * 16000) * 2
    heard: list[tuple[float, str]] = []
    async with websockets.connect(f"{address}/v1/realtime?model={name}") as socket:
        await socket.recv()
        await socket.send(json.dumps({"type": "session.update", "session": SESSION}))
        await socket.recv()
        started = time.monotonic()

        async def send() -> float:
            for number, start in enumerate(range(0, len(data), step), 1):
                await asyncio.sleep(max(started + number * PIECE - time.monotonic(), 0))  # no sooner than spoken
                audio = base64.b64encode(data[start : start + step]).decode()
                await socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": audio}))
            await socket.send(json.dumps({"type": "input_audio_buffer.commit"}))
            return time.monotonic()

        sending = asyncio.create_task(send())
        while True:
            event: dict[str, Any] = json.loads(await socket.recv())
            now = time.monotonic()
            if event["type"].endswith(".delta"):
                heard += [(now - started, word) for word in event["delta"].split()]
            elif event["type"].endswith(".completed"):
                return heard, event["transcript"], now - await sending
            elif event["type"] == "error":
                raise SystemExit(str(event))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", type=Path, required=True, help="a recogniser's run folder")
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--recordings", type=int, default=6)
    given = parser.parse_args()
    model = SpeechAdapterModel.from_adapter(given.adapter)
    name, first, each, ends, errors, words = str(model.active), [], [], [], 0, 0
    with serving(model.encoder.name, given.adapter) as (_, address):
        for utterance in chosen(Manifest.read(given.manifest), given.recordings):
            offline = model.transcribe(utterance.audio_filepath)
            heard, final, end = asyncio.run(speak(address.replace("http", "ws"), name, utterance.waveform().numpy()))
            spoken = [word.end for word in offline.words]
            first.append(heard[0][0] - spoken[0])
            # the same words in the same order but for what the bar allows: compared by their place
            each += [came - said for (came, _), said in zip(heard, spoken, strict=False)]
            ends.append(end)
            found = word_error_rate([offline.text], [final], normalizer="none")
            errors, words = errors + sum(u.errors for u in found.utterances), words + found.words
    each.sort()
    found = {
        "recordings": len(first),
        "first_word_seconds": {"median": statistics.median(first), "most": max(first)},
        "word_seconds": {"median": statistics.median(each), "p95": each[int(0.95 * len(each))]},
        "final_text_seconds": {"median": statistics.median(ends), "most": max(ends)},
        "words": words,
        "words_unlike_offline": errors / words,
    }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
