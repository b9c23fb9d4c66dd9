"""A head whose modalities look at each other: a small network of tokens with cross-attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from histoweave._random import child_seeds, torch_seed
from histoweave.models._base import Arrays
from histoweave.models._sections import spread
from histoweave.models.fusion._heads import Head

N_TOKENS, WIDTH, N_HEADS = 4, 32, 4  # of each modality, of a token, of attention
DROPOUT = 0.2
ABSENT = 0.3  # share of training rows that must do without one of their modalities
BATCH, LEARNING_RATE, WEIGHT_DECAY = 128, 5e-3, 0.05


class TokenNetwork(nn.Module):
    """Tokens of every modality, one layer of attention between modalities, the mean of what they found.

    A token is a linear combination of a modality's features that is learned with the rest: of gene components a
    programme, of image components a pattern. Tokens of one modality ask those of the others; where there is
    one modality only, they ask each other.

    Parameters
    ----------
    widths
        Features of each modality.
    n_classes
        Number of classes.
    """

    def __init__(self, widths: Sequence[int], n_classes: int) -> None:
        super().__init__()
        self.widths = list(widths)
        self.tokens = nn.ModuleList(nn.Linear(width, N_TOKENS * WIDTH) for width in widths)
        self.absent = nn.Parameter(torch.zeros(len(widths), N_TOKENS, WIDTH))
        self.before = nn.LayerNorm(WIDTH)
        self.ask, self.show = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH)
        self.answer = nn.Linear(WIDTH, WIDTH)
        self.think = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Dropout(DROPOUT),
                                   nn.Linear(2 * WIDTH, WIDTH))  # fmt: skip
        self.out = nn.Sequential(nn.LayerNorm(WIDTH), nn.Dropout(DROPOUT), nn.Linear(WIDTH, n_classes))
        owner = torch.arange(len(widths)).repeat_interleave(N_TOKENS)
        self.register_buffer("_sees", (owner[:, None] != owner) | (len(widths) == 1), persistent=False)

    def forward(self, x: Tensor, present: Tensor | None = None) -> Tensor:
        """Return logits ``(n, n_classes)``.

        Parameters
        ----------
        x
            Features of all modalities side by side ``(n, sum(widths))``.
        present
            False where a row must do without a modality ``(n, modalities)``.
        """
        blocks = x.split(self.widths, dim=1)
        tokens = [layer(b).view(-1, N_TOKENS, WIDTH) for layer, b in zip(self.tokens, blocks, strict=True)]
        tokens = torch.stack(tokens, dim=1)
        if present is not None:
            tokens = torch.where(present[:, :, None, None], tokens, self.absent)
        h = tokens.flatten(1, 2)
        normed = self.before(h)
        query, key, value = (
            _heads(t) for t in (self.ask(normed), *self.show(normed).chunk(2, dim=2))
        )  # each (n, heads, tokens, width of a head)
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=self._sees)
        h = h + self.answer(found.transpose(1, 2).flatten(2))
        return self.out((h + self.think(h)).mean(dim=1))


def _heads(t: Tensor) -> Tensor:
    return t.unflatten(2, (N_HEADS, -1)).transpose(1, 2)


class AttentionHead(Head):
    """Cross-attention between the modalities' tokens, class-balanced, on standardised features.

    Training leaves out one modality of some rows (modality dropout), so that no modality is learned only as
    an addition to another.

    Parameters
    ----------
    widths
        Features of each modality, side by side in what it is given.
    n_steps
        Steps of training: the longer, the closer to the training rows.
    """

    kind = "attention"

    def __init__(self, widths: Sequence[int], n_steps: int = 120) -> None:
        self.widths, self.n_steps = tuple(int(w) for w in widths), n_steps

    def fit(self, X: np.ndarray, y: np.ndarray, n_classes: int, seed: int) -> AttentionHead:
        """Fit on features ``(n, d)`` and class numbers ``(n,)``."""
        X = X.astype(np.float64)
        self.mean, self.sd = X.mean(axis=0), spread(X)
        self.classes, codes = np.unique(y, return_inverse=True)
        self.n_classes = n_classes
        init_seed, row_seed = child_seeds(seed, 2)
        with torch_seed(init_seed):
            self._network = TokenNetwork(self.widths, len(self.classes))
            self._train(self._standardised(X), torch.from_numpy(codes), np.random.default_rng(row_seed))
        return self

    def _train(self, x: Tensor, y: Tensor, rng: np.random.Generator) -> None:
        """Balanced cross-entropy on batches drawn with replacement; AdamW, the learning rate falling to 0."""
        counts = torch.bincount(y)
        weight = len(y) / (len(counts) * counts.float())
        optimizer = torch.optim.AdamW(self._network.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.n_steps)
        self._network.train()
        for _ in range(self.n_steps):
            rows = torch.from_numpy(rng.integers(0, len(y), min(BATCH, len(y))))
            logits = self._network(x[rows], self._present(len(rows), rng))
            loss = (F.cross_entropy(logits, y[rows], reduction="none") * weight[y[rows]]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        self._network.eval()

    def _present(self, n: int, rng: np.random.Generator) -> Tensor | None:
        """Return which modalities each row is shown: all, or all but one."""
        n_modalities = len(self.widths)
        if n_modalities == 1:
            return None
        present = np.ones((n, n_modalities), dtype=bool)
        chosen = np.flatnonzero(rng.random(n) < ABSENT)
        present[chosen, rng.integers(0, n_modalities, len(chosen))] = False
        return torch.from_numpy(present)

    def _standardised(self, X: np.ndarray) -> Tensor:
        return torch.from_numpy(((X - self.mean) / self.sd).astype(np.float32))

    @torch.inference_mode()
    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Return probabilities ``(n, n_classes)``; a class without training rows has probability 0."""
        p = np.zeros((len(X), self.n_classes))
        p[:, self.classes] = torch.softmax(self._network(self._standardised(X)).double(), dim=1).numpy()
        return p

    def state(self) -> tuple[dict[str, Any], Arrays]:
        """Return ``(config, arrays)``."""
        config = {"kind": self.kind, "widths": list(self.widths), "n_steps": self.n_steps}
        arrays = {f"network.{name}": value.numpy() for name, value in self._network.state_dict().items()}
        arrays |= {"mean": self.mean, "sd": self.sd, "classes": self.classes}
        return config | {"n_classes": self.n_classes}, arrays

    @classmethod
    def from_state(cls, config: dict[str, Any], arrays: Arrays) -> AttentionHead:
        """Rebuild from `state`."""
        head = cls(config["widths"], config["n_steps"])
        head.mean, head.sd, head.classes = arrays["mean"], arrays["sd"], arrays["classes"]
        head.n_classes = config["n_classes"]
        head._network = TokenNetwork(head.widths, len(head.classes)).eval()
        weights = {name.removeprefix("network."): v for name, v in arrays.items() if name.startswith("network.")}
        head._network.load_state_dict({name: torch.from_numpy(np.array(v)) for name, v in weights.items()})
        return head
