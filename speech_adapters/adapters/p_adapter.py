"""P-adapter: a few learned pseudo frames beside the CNN's frames.

    X' = [P; X]      P in R^{N x C}; the frames P leave again before the head, and every attention may look at them

Parameters: ``N C`` (C the CNN's width at "cnn_out", the encoder's elsewhere).

Use them beside E- and L-adapters (preset "elp"), or alone as the smallest adapter there is ("prompt").

Source of the idea: "ELP-adapters" (Inoue et al., 2024, abstract): the P-adapter "appends pseudo features to CNN
features"; the abstract states neither their number, their start nor their place. Ours: prepended at the CNN's output,
each what the front-end makes of silence, and N(0, 0.02) beside it.

Step 0 is the frozen encoder on speech that begins with N silent frames (0.1 s), since pseudo frames take part in the
attention from the first step on. Frames that begin around zero are no silence to most encoders: they changed the last
states of Whisper base's encoder by 81 % of their norm, and ``elp`` had learnt nothing there after 400 updates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from speech_adapters.adapters.base import AdapterConfig, AdapterModule
from speech_adapters.adapters.silence import middle, silence
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.encoders.plan import Frames
from speech_adapters.ranges import NotNegative, Size


@dataclass(frozen=True, kw_only=True)
class PAdapter(AdapterConfig):
    """Pseudo frames at one place of the front-end."""

    method: ClassVar[str] = "p"
    group: ClassVar[str] = "p"

    frames: Size = 5
    """Pseudo frames N; 5 as the embedding prompts of PEFT-SER (Feng and Narayanan, 2023)."""
    where: Literal["cnn_out", "proj_out", "layers_in"] = "cnn_out"
    """Before or after the feature projection, or right before the first layer (shallow prompt tuning)."""
    side: Literal["prepend", "append"] = "prepend"
    """Before the first frame, or right after each utterance's last real one."""
    init_std: NotNegative = 0.02
    """Deviation of the first values from silence, which tells the frames apart."""

    def build(self, encoder: Encoder) -> PAdapterModule:
        return PAdapterModule(self, encoder)


class PAdapterModule(AdapterModule):
    """The pseudo frames, (N, C)."""

    config: PAdapter
    first_layer = -1

    def __init__(self, config: PAdapter, encoder: Encoder) -> None:
        super().__init__(config)
        width = encoder.cnn_width if config.where == "cnn_out" else encoder.hidden_size
        start = torch.randn(config.frames, width) * config.init_std
        if not start.is_meta:  # a blueprint holds no values
            start += _silent_frame(encoder, config.where).to(start)
        self.pseudo = nn.Parameter(start)

    def pseudo_frames(self, where: str, frames: Tensor, mask: Tensor | None) -> Frames | None:
        if where != self.config.where:
            return None
        batch, time, width = frames.shape
        count = len(self.pseudo)
        pseudo = self.pseudo.to(frames.dtype).expand(batch, -1, -1)
        if self.config.side == "prepend":
            extended = torch.cat([pseudo, frames], dim=1)
            return Frames(extended, None if mask is None else nn.functional.pad(mask, (count, 0), value=True), count)
        extended = torch.cat([frames, pseudo], dim=1)
        if mask is None:
            return Frames(extended, None, 0)
        # Pseudo frames go right behind the last real frame, so that the padding's length changes nothing.
        lengths = mask.sum(1, keepdim=True)
        position = torch.arange(time + count, device=frames.device).expand(batch, -1)
        source = torch.where((position >= lengths) & (position < lengths + count), time + position - lengths, position)
        source = source.clamp_max(time + count - 1).unsqueeze(-1).expand(-1, -1, width)
        return Frames(extended.gather(1, source), position < lengths + count, 0)

    def describe(self) -> list[str]:
        count, width = self.pseudo.shape
        return [f"p: {count} pseudo frames of {width}, {self.config.side} at {self.config.where}"]


def _silent_frame(encoder: Encoder, where: str) -> Tensor:
    output = silence(encoder, stop_layer=0)
    assert output.cnn_output is not None
    if where == "cnn_out":
        return middle(output.cnn_output)
    if where == "layers_in":
        return middle(output.hidden_states[0])
    with torch.no_grad():
        return middle(encoder.architecture.project(encoder.model, output.cnn_output))
