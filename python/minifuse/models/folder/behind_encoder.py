"""The pooling behind an encoder and the modules behind that, as a folder describes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from minifuse.models.description import Config, read_object
from minifuse.models.modules import Module, NormalizeModule, read_dense, read_layer_norm

__all__ = ["OLD_POOLING_KEYS", "read_modules", "read_pooling"]

_POOLINGS = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
# The order in which sentence-transformers concatenates the old style's flags.
OLD_POOLING_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


def read_pooling(path: Path) -> tuple[list[str], bool]:
    """Return the poolings that a folder names, and whether a prompt's tokens are pooled, too.

    Raises:
        FileNotFoundError: its config.json is missing.
        ValueError: it is damaged, or asks for what is not computed.
    """
    config = read_object(path / "config.json")
    include_prompt = bool(config.get("include_prompt", True))
    mode = config.get("pooling_mode")
    if mode is None:
        unknown = [
            key
            for key, value in config.items()
            if key.startswith("pooling_mode_") and value and key not in OLD_POOLING_KEYS
        ]
        if unknown:
            raise ValueError(f"{path}: pooling {unknown[0]!r} is not supported")
        modes = [name for key, name in OLD_POOLING_KEYS.items() if config.get(key)]
    else:
        modes = [mode] if isinstance(mode, str) else mode
        if not isinstance(modes, list) or not all(isinstance(one, str) for one in modes):
            raise ValueError(f"{path}: pooling_mode is {mode!r:.60}, wanted names of poolings")
    for name in modes:
        if name not in _POOLINGS:
            raise ValueError(f"{path}: pooling {name!r}, wanted one of {', '.join(_POOLINGS)}")
    if not modes:
        raise ValueError(f"{path}: no pooling mode is switched on")
    return modes, include_prompt


def read_modules(
    folder: Path, kinds: Sequence[tuple[str, Path]], gives_scores: bool = False
) -> list[Module]:
    """Return the modules behind a pooling, given by the name of their class and their folder.

    Args:
        folder: of the model, for messages.
        kinds: of the modules.
        gives_scores: the last one makes the scores of a cross-encoder, not an embedding.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a module is damaged, or is not computed.
    """
    modules: list[Module] = []
    for place, (kind, path) in enumerate(kinds, 1):
        is_last = place == len(kinds)
        if kind == "Dense":
            output = "scores" if gives_scores and is_last else "sentence_embedding"
            modules.append(read_dense(path, output))
        elif kind == "LayerNorm":
            modules.append(read_layer_norm(path))
        elif kind == "Normalize":
            if path != Path() and (path / "config.json").is_file():
                config = Config(path / "config.json", read_object(path / "config.json"))
                config.want("module_input_name", "sentence_embedding")
            modules.append(NormalizeModule())
        elif kind != "Dropout":  # which drops nothing when a model is used
            raise ValueError(
                f"{folder}: module {kind!r} is not supported behind the pooling; wanted any of "
                "Dense, Dropout, LayerNorm and Normalize"
            )
    return modules
