"""What a fusion or a router looked at: its weights on the members, by site, over a data set."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from speech_adapters.model import SpeechAdapterModel


@torch.no_grad()
def mean_attention(model: SpeechAdapterModel, batches: Iterable[dict[str, Tensor]]) -> dict[str, dict[str, float]]:
    """Site -> member -> weight of the active Fuse and Route compositions, the mean over utterances.

    Args:
        batches: with ``waveforms`` and ``lengths``, such as those of ``evaluation_loader``. An utterance's weight is
            the mean over its real frames; pseudo frames are left out.

    Sites are "name.feed_forward_3", "name.read", or "name.gate" of a router. The expert that adds nothing is "none".
    """
    model.eval()
    device = model.encoder.device
    sums: dict[str, Tensor] = {}
    count = 0
    for batch in batches:
        output = model(batch["waveforms"].to(device), batch["lengths"].to(device))
        frames = output.last_hidden_state.shape[1]
        real = torch.arange(frames, device=device) < output.frame_lengths[:, None]
        for site, attention in output.attention.items():
            if attention.shape[1] > 1:
                if attention.shape[1] != frames:
                    attention = attention[:, output.pseudo_frames : output.pseudo_frames + frames]
                attention = (attention * real.unsqueeze(-1)).sum(1) / real.sum(1, keepdim=True)
            sums[site] = sums.get(site, 0) + attention.reshape(len(real), -1).sum(0).cpu()
        count += len(real)
    members = {fusion.name: [*map(_word, fusion.members)] for fusion in model.active_fusions}
    return {
        site: dict(zip([*members[site.split(".")[0]], "none"], (total / count).tolist(), strict=False))
        for site, total in sums.items()
    }


def _word(member: object) -> str:
    return member if isinstance(member, str) else repr(member)
