"""Tunes a causal language model on encoded records: `tune(model, tokenizer, train, validation, output, settings)`."""

from .loss import labelled_loss
from .settings import TuneSettings, shards_of
from .tune import TuneResult, tune

__all__ = ["TuneResult", "TuneSettings", "labelled_loss", "shards_of", "tune"]
