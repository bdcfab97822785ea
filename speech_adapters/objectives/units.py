"""Discrete units of speech: k-means clusters of MFCCs, or of a layer of the frozen base (Hsu et al., "HuBERT", 2021,
IV-B, unit discovery: 39 MFCC dimensions in the first iteration, a hidden layer in the next).

Units are computed on the way, from the clean waveform that the model hears a version of, so that random crops need no
files beside the audio. Features come from the model's device; clustering is scikit-learn's minibatch k-means.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from speech_adapters.data.audio import SAMPLE_RATE
from speech_adapters.errors import ConfigError
from speech_adapters.model import SpeechAdapterModel

MFCC = "mfcc"
_HOP = 160


class KMeansUnits(nn.Module):
    """Waveforms to unit numbers; ``source`` is "mfcc" or a layer, 1 for the first one's output."""

    centroids: Tensor

    def __init__(self, source: str | int, clusters: int, size: int) -> None:
        super().__init__()
        self.source = source
        self.register_buffer("centroids", torch.zeros(clusters, size))
        if source == MFCC:
            from torchaudio.transforms import MFCC as Coefficients

            filters = {"n_fft": 400, "hop_length": _HOP, "n_mels": 40}
            self.mfcc = Coefficients(SAMPLE_RATE, 13, melkwargs=filters)

    @classmethod
    def for_model(cls, model: SpeechAdapterModel, source: str, clusters: int) -> KMeansUnits:
        """Units not yet fitted. Raises ConfigError for a source that is neither "mfcc" nor one of the layers."""
        layers = model.encoder.num_layers
        if source == MFCC:
            return cls(MFCC, clusters, 39)
        if not str(source).isdigit() or not 1 <= int(source) <= layers:
            raise ConfigError(f"units={source!r}: choose mfcc, or a layer from 1 to {layers}.")
        return cls(int(source), clusters, model.encoder.hidden_size)

    @torch.no_grad()
    def features(self, model: SpeechAdapterModel, waveforms: Tensor, lengths: Tensor | None) -> Tensor:
        """(B, T, F) of the base without adapters, one row per frame of the encoder."""
        encoder = model.encoder
        if self.source != MFCC:
            return encoder(waveforms, lengths, stop_layer=self.source).hidden_states[-1].float()
        from torchaudio.functional import compute_deltas

        with torch.autocast(waveforms.device.type, enabled=False):
            # as channels of one recording they would share the floor of 80 dB below the loudest
            coefficients = self.mfcc(encoder.normalized(waveforms, lengths).float().unsqueeze(1)).squeeze(1)
            delta = compute_deltas(coefficients)
            stacked = torch.cat([coefficients, delta, compute_deltas(delta)], dim=1)
        frames = int(encoder.frame_lengths(waveforms.shape[1]))
        nearest = (
            (encoder.frame_centres(frames).to(stacked.device) / _HOP).round().long().clamp(max=stacked.shape[-1] - 1)
        )
        return stacked[..., nearest].transpose(1, 2)

    def forward(self, model: SpeechAdapterModel, waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, T) unit of each frame; those of padding mean nothing."""
        features = self.features(model, waveforms, lengths)
        return torch.cdist(features, self.centroids.expand(len(features), -1, -1)).argmin(-1)

    def fit(self, model: SpeechAdapterModel, batches: Iterable[Tensor], seed: int = 0) -> KMeansUnits:
        """Cluster the frames of ``batches`` of unpadded waveforms (B, samples), with HuBERT's settings.

        Raises:
            ConfigError: fewer frames than clusters.
        """
        device = self.centroids.device
        frames = torch.cat([self.features(model, wave.to(device), None).flatten(0, 1).cpu() for wave in batches])
        self.centroids.copy_(k_means(frames, len(self.centroids), seed))
        return self


def k_means(frames: Tensor, clusters: int, seed: int) -> Tensor:
    """Centroids (clusters, F) of frames (N, F), both on the CPU, with HuBERT's settings of minibatch k-means.

    Raises:
        ConfigError: fewer frames than clusters.
    """
    from sklearn.cluster import MiniBatchKMeans

    if len(frames) < clusters:
        raise ConfigError(f"clusters={clusters}: the speech has {len(frames)} frames only; ask for fewer clusters.")
    kmeans = MiniBatchKMeans(
        clusters, batch_size=10_000, n_init=5, max_no_improvement=100, reassignment_ratio=0.0, random_state=seed
    ).fit(frames.numpy())
    return torch.from_numpy(kmeans.cluster_centers_)
