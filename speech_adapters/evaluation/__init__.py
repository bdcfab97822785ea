"""Figures that can be trusted: error rates with intervals that respect who is speaking."""

from speech_adapters.evaluation.bootstrap import Interval, bootstrap, bootstrap_statistic
from speech_adapters.evaluation.wer import WERResult, compare, word_error_rate, write_trn

__all__ = ["Interval", "WERResult", "bootstrap", "bootstrap_statistic", "compare", "word_error_rate", "write_trn"]
