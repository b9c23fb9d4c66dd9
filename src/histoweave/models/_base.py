"""Saving and loading without pickle: a model is a folder of arrays, JSON and a readable card."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from histoweave._files import atomic_path
from histoweave._record import versions

Arrays = dict[str, np.ndarray]

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
FORMAT = 1


class Model(ABC):
    """What every model shares: a state of plain values and arrays, ``save`` and ``load``."""

    _registry: ClassVar[dict[str, type[Model]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Model._registry[cls.__name__] = cls

    @abstractmethod
    def _state(self) -> tuple[dict[str, Any], Arrays]:
        """Return ``(values that JSON can hold, arrays)``; raises when the model is not fitted."""

    @classmethod
    @abstractmethod
    def _from_state(cls, config: dict[str, Any], arrays: Arrays) -> Self:
        """Rebuild a fitted model from what `_state` returned."""

    def _card(self) -> list[str]:
        """Lines of the model card that are particular to the model."""
        return []

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Save the fitted model as a folder that executes nothing when it is loaded.

        Parameters
        ----------
        path
            The folder to write. It appears under its name only when it is complete.
        overwrite
            Replace an existing model.

        Returns
        -------
        The folder, with ``model.safetensors`` (arrays), ``config.json`` (arguments, classes, genes, sections
        seen, versions, seed) and ``README.md`` (a model card to read).

        Raises
        ------
        RuntimeError
            The model is not fitted.
        FileExistsError
            The folder exists and ``overwrite`` is off, or what exists is not a saved model.
        PermissionError
            The parent folder cannot be written to.
        """
        config, arrays = self._state()
        _require_replaceable(Path(path), overwrite)
        header = {
            "model": type(self).__name__,
            "format": FORMAT,
            "versions": versions("numpy", "scikit-learn", "torch"),
        }
        with atomic_path(path, overwrite=overwrite) as folder:
            folder.mkdir()
            save_file({k: np.asarray(v, order="C") for k, v in arrays.items()}, folder / WEIGHTS)
            text = json.dumps(header | config, indent=1, ensure_ascii=False, default=_to_json)
            (folder / CONFIG).write_text(text, encoding="utf-8")
            card = [
                f"# {type(self).__name__}",
                "",
                "Saved by histoweave " + header["versions"]["histoweave"] + ".",
                "",
            ]
            (folder / CARD).write_text("\n".join([*card, *self._card(), ""]), encoding="utf-8")
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Load a model from the folder that `save` wrote. Nothing in the folder is executed.

        Parameters
        ----------
        path
            The folder.

        Returns
        -------
        The fitted model.

        Raises
        ------
        FileNotFoundError
            The folder or one of its files is missing.
        ValueError
            The folder holds another kind of model, a newer format, or damaged files.
        """
        folder = Path(path)
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                msg = f"{str(folder)!r} is not a saved model: {name!r} is missing."
                raise FileNotFoundError(msg)
        try:
            config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            arrays = load_file(folder / WEIGHTS)
        except (json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
            msg = f"The model folder {str(folder)!r} is damaged: {error}"
            raise ValueError(msg) from error
        if not isinstance(config, dict) or not {"model", "format", "versions"} <= set(config):
            msg = f"{str(folder / CONFIG)!r} was not written by histoweave: it does not say which model it describes."
            raise ValueError(msg)
        if config["format"] > FORMAT:
            msg = (
                f"{str(folder)!r} was saved by histoweave {config['versions'].get('histoweave')} in a newer format. "
                "Update histoweave."
            )
            raise ValueError(msg)
        kind = Model._registry.get(config["model"])
        if kind is None or not issubclass(kind, cls):
            msg = f"{str(folder)!r} holds a {config['model']!r}; load it with `hw.models.{config['model']}.load`."
            raise ValueError(msg)
        try:
            return kind._from_state(config, arrays)
        except (KeyError, IndexError, TypeError, AttributeError, RuntimeError) as error:
            msg = f"The model folder {str(folder)!r} is damaged ({type(error).__name__}: {error})."
            raise ValueError(msg) from error


def _require_replaceable(folder: Path, overwrite: bool) -> None:
    """Raise unless ``folder`` is free, or a model that may be replaced: other files are never removed."""
    if folder.exists() and overwrite and not (folder / CONFIG).is_file():
        msg = f"{str(folder)!r} exists and is not a saved model; it is not replaced. Choose another path."
        raise FileExistsError(msg)


def prefixed(prefix: str, arrays: Mapping[str, np.ndarray]) -> Arrays:
    """Return ``arrays`` with ``prefix.`` before every name."""
    return {f"{prefix}.{name}": value for name, value in arrays.items()}


def subset(prefix: str, arrays: Mapping[str, np.ndarray]) -> Arrays:
    """Return the arrays whose name starts with ``prefix.``, without it."""
    return {name[len(prefix) + 1 :]: value for name, value in arrays.items() if name.startswith(prefix + ".")}


def markdown_table(frame: pd.DataFrame) -> list[str]:
    """Return the lines of a table for the model card."""
    rows = [[f"{v:.3f}" if isinstance(v, float) else str(v) for v in row] for row in frame.itertuples(index=False)]
    table = [list(frame.columns), ["---"] * frame.shape[1], *rows]
    return ["| " + " | ".join(row) + " |" for row in table]


def most_probable(p: pd.DataFrame) -> pd.DataFrame:
    """Return the most probable class of every row and its probability; missing for rows of NaN."""
    known = p.notna().all(axis=1)
    predicted = pd.Series(None, index=p.index, dtype=object)
    predicted[known] = p[known].idxmax(axis=1)
    return pd.DataFrame({"predicted": predicted, "confidence": p.max(axis=1)})


def require_fitted(model: Any, attribute: str) -> None:
    """Raise ``RuntimeError`` unless the model has been fitted."""
    if getattr(model, attribute, None) is None:
        msg = f"This {type(model).__name__} is not fitted. Run `fit(data, ...)` first, or `load` a saved one."
        raise RuntimeError(msg)


def _to_json(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray | tuple | set):
        return list(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    msg = f"Cannot save a {type(value).__name__} in {CONFIG}."
    raise TypeError(msg)
