"""Figures that can be trusted: error rates with intervals that respect who is speaking."""

from speech_adapters.metrics.bootstrap import Interval, bootstrap, bootstrap_statistic
from speech_adapters.metrics.classification import ClassificationResult, score_classification
from speech_adapters.metrics.detection import actual_dcf, cllr, detection_curve, eer, min_cllr, min_dcf
from speech_adapters.metrics.wer import WERResult, compare, word_error_rate, write_trn

__all__ = [
    "ClassificationResult", "Interval", "WERResult", "actual_dcf", "bootstrap", "bootstrap_statistic", "cllr",
    "compare", "detection_curve", "eer", "min_cllr", "min_dcf", "score_classification", "word_error_rate", "write_trn",
]  # fmt: skip
