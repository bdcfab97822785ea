"""Classification losses for speaker embeddings, from plain softmax to additive margins.

With unit vectors, cos t_c = <e / |e|, w_c / |w_c|>, scale s and margin m on the true class y alone:

    ce         softmax of W e + b
    am         softmax of s (cos t_y - m)          Wang et al., "Additive margin softmax" (2018)
    aam        softmax of s cos(t_y + m)           Deng et al., "ArcFace" (CVPR 2019), section 2
    subcenter  aam on cos t_c = max_k cos t_ck     Deng et al., "Sub-center ArcFace" (ECCV 2020)

cos(t + m) falls only up to t + m = pi; beyond, the loss goes on as cos t - m sin m, which keeps falling (ArcFace's
code). Everything here computes in float32.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_adapters.errors import ConfigError
from speech_adapters.ranges import Range

LOSSES = ("ce", "am", "aam", "subcenter")

Margin = Annotated[float, Range(0, 1.5, below=True)]
"""Of a loss: an angle below a right one."""


class CosineClassifier(nn.Module):
    """(B, E) embeddings to (B, C) cosines with ``classes`` learned centres; the closest of ``subcenters`` each."""

    def __init__(self, size: int, classes: int, subcenters: int = 1) -> None:
        super().__init__()
        self.subcenters = subcenters
        self.weight = nn.Parameter(torch.empty(classes * subcenters, size))
        nn.init.xavier_normal_(self.weight)

    def forward(self, embeddings: Tensor) -> Tensor:
        with torch.autocast(embeddings.device.type, enabled=False):
            cosines = F.linear(F.normalize(embeddings.float()), F.normalize(self.weight.float()))
        return cosines.view(cosines.shape[0], -1, self.subcenters).amax(2)


def margin_loss(cosines: Tensor, targets: Tensor, kind: str, margin: float, scale: float) -> Tensor:
    """Mean cross-entropy of (B, C) cosines with the margin on the classes ``targets`` (B,).

    Raises:
        ConfigError: a ``kind`` without margin.
    """
    true = cosines.gather(1, targets.unsqueeze(1))
    if kind == "am":
        moved = true - margin
    elif kind in ("aam", "subcenter"):
        sine = (1 - true.square()).clamp(min=1e-9).sqrt()  # at |cos| = 1 its gradient is not finite
        moved = true * math.cos(margin) - sine * math.sin(margin)
        moved = torch.where(true > -math.cos(margin), moved, true - margin * math.sin(margin))
    else:
        raise ConfigError(f"loss={kind!r} has no margin: choose {', '.join(LOSSES[1:])}.")
    return F.cross_entropy(scale * cosines.scatter(1, targets.unsqueeze(1), moved), targets)
