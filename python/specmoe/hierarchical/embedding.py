"""An expert's hidden states as features of texts, and a classifier of domains on top of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..training.data import DOMAINS, encode_prompt
from ..training.files import replace_file
from .workspace import Workspace

_BATCH = 64


@torch.no_grad()
def hidden_features(expert: Any, tokenizer: Any, texts: Sequence[str]) -> np.ndarray:
    """Returns the mean of an expert's last hidden states over each text's tokens, as a user's turn.

    Args:
        expert: the network.
        tokenizer: its tokenizer.
        texts: a text longer than the context is cut.

    Returns:
        (texts, width) float32.
    """
    context, found = expert.config.n_positions, []
    for start in range(0, len(texts), _BATCH):
        encoded = [
            encode_prompt(tokenizer, [{"role": "user", "content": text}])[:context]
            for text in texts[start : start + _BATCH]
        ]
        longest = max(map(len, encoded))
        ids = torch.tensor([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in encoded])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in encoded])
        hidden = expert.transformer(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state.float()
        found.append(((hidden * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)).numpy())
    return np.concatenate(found)


@dataclass
class FeatureClassifier:
    """Softmax regression on standardized features.

    Attributes:
        mean, deviation: (width) float32, of the features that it was trained on.
        weight: (width, classes) float32.
        bias: (classes) float32.
        classes: their names.
    """

    mean: np.ndarray
    deviation: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    classes: tuple[str, ...]

    def __call__(self, features: np.ndarray) -> list[str]:
        """Returns the likeliest class of each of (texts, width) features."""
        logits = (features - self.mean) / self.deviation @ self.weight + self.bias
        return [self.classes[best] for best in logits.argmax(axis=1)]


def train_classifier(features: np.ndarray, labels: Sequence[str], decay: float = 1e-3) -> FeatureClassifier:
    """Returns a classifier of features.

    Args:
        features: (texts, width).
        labels: the class of each text.
        decay: weight of the squared weights beside the mean cross-entropy.
    """
    classes = tuple(dict.fromkeys(labels))
    mean, deviation = features.mean(axis=0), features.std(axis=0) + 1e-6
    x = torch.from_numpy((features - mean) / deviation)
    y = torch.tensor([classes.index(label) for label in labels])
    weight = torch.zeros(x.shape[1], len(classes), requires_grad=True)
    bias = torch.zeros(len(classes), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(x @ weight + bias, y) + decay * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return FeatureClassifier(mean, deviation, weight.detach().numpy(), bias.detach().numpy(), classes)


@dataclass(frozen=True)
class Embedded:
    """What `embed_records` returns.

    Attributes:
        expert: whose hidden states the features are.
        features: of the test side's prompts, (prompts, width).
        labels: their domains.
        classifier: trained on the training side's prompts.
        accuracy: of the classifier on the test side.
        trained_on: how many prompts it was trained on.
    """

    expert: str
    features: np.ndarray
    labels: list[str]
    classifier: FeatureClassifier
    accuracy: float
    trained_on: int

    def save(self, path: Path, texts: Sequence[str] = (), text_features: np.ndarray | None = None) -> None:
        """Writes everything as one .npz file, with further texts and their features where there are some."""
        content: dict[str, Any] = {
            "expert": self.expert, "features": self.features, "labels": np.array(self.labels),
            "classes": np.array(self.classifier.classes), "weight": self.classifier.weight,
            "bias": self.classifier.bias, "mean": self.classifier.mean, "deviation": self.classifier.deviation,
        }  # fmt: skip
        if text_features is not None:
            content |= {"texts": np.array(list(texts)), "text_features": text_features}

        def write(partial: Path) -> None:
            with partial.open("wb") as file:
                np.savez_compressed(file, **content)

        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, write)


def embed_records(workspace: Workspace, domain: str, each: int = 500) -> Embedded:
    """Returns an expert's features of all domains' prompts and a classifier of domains on top of them.

    Args:
        workspace: the folder of experts.
        domain: whose hidden states.
        each: the most prompts of a domain that the classifier learns from.

    Raises:
        CheckpointError: the expert is missing or damaged.
    """
    expert, tokenizer = workspace.expert(domain), workspace.tokenizer

    def prompts(side: str) -> tuple[list[str], list[str]]:
        pairs = [(record.prompt, name) for name in DOMAINS for record in workspace.records(name)[side][:each]]
        return [text for text, _ in pairs], [name for _, name in pairs]

    texts, labels = prompts("train")
    classifier = train_classifier(hidden_features(expert, tokenizer, texts), labels)
    held, wanted = prompts("test")
    features = hidden_features(expert, tokenizer, held)
    right = [said == name for said, name in zip(classifier(features), wanted, strict=True)]
    return Embedded(domain, features, wanted, classifier, sum(right) / len(right), len(texts))
