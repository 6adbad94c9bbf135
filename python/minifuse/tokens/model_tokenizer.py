"""A model's tokenizer by the names of transformers' fast tokenizers.

Programs that are made for sentence-transformers count tokens, cut texts and read ids with
``model.tokenizer``. What transformers does not name is asked of the ``tokenizers.Tokenizer`` behind
it, and so is what programs change in place.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from minifuse.tensors import import_torch
from minifuse.tokens.pairs import shared_lengths
from minifuse.tokens.tokenization import TextTokenizer
from minifuse.tokens.tokenizer_files import read_state

__all__ = ["Encodings", "ModelTokenizer"]

_SPECIAL = tuple(f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
_NEVER = (False, "do_not_truncate")
_TRUNCATIONS = (True, "longest_first", "only_first", "only_second", *_NEVER)
# Methods of the tokenizer behind it that change nothing.
_READ_ONLY = [
    "decode_batch",
    "encode_batch",
    "encode_batch_fast",
    "get_added_tokens_decoder",
    "get_vocab_size",
    "id_to_token",
    "save",
    "to_str",
    "token_to_id",
]
_PADDINGS = (True, "longest", "max_length", False, "do_not_pad")


class Owner(Protocol):
    """A model, which has the tokenizer."""

    max_seq_length: Any


class Encodings(dict[str, Any]):
    """Keys with what they hold of each text: lists, arrays or tensors. Keys are attributes, too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the encodings have no {name!r}, only {list(self)}") from None

    def to(self, device: Any) -> Encodings:
        """Return the same with its tensors on a device."""
        return Encodings((k, v.to(device) if hasattr(v, "to") else v) for k, v in self.items())


class ModelTokenizer:
    """The tokenizer of a model.

    Args:
        owner: the model, whose max_seq_length is model_max_length.
        tokenizer: that is in use.
        folder: of tokenizer_config.json, which names the special tokens.

    Attributes:
        name_or_path: the folder.
    """

    is_fast = True
    padding_side = truncation_side = "right"

    def __init__(self, owner: Owner, tokenizer: TextTokenizer, folder: Path) -> None:
        own = self.__dict__  # an attribute that is set is a wish: see __setattr__
        own["_owner"], own["_tokenizer"], own["_folder"] = owner, tokenizer, folder
        own["name_or_path"] = str(folder)

    @property
    def backend_tokenizer(self) -> Any:
        """The ``tokenizers.Tokenizer``, its truncation and padding switched off."""
        return self._tokenizer.hand_out()

    # ---- what is asked of the tokenizer behind it -------------------------------------------

    def __getattr__(self, name: str) -> Any:
        if name.startswith(
            "__"
        ):  # Python's own, which it may ask of an object that has no content yet
            raise AttributeError(name)
        of_token = name.removesuffix("_id")
        if of_token in _SPECIAL:
            token = self.special_tokens_map.get(of_token)
            return token if name == of_token or not token else self.convert_tokens_to_ids(token)
        tokenizer = self.__dict__["_tokenizer"]
        if name not in dir(tokenizer.backend):
            raise AttributeError(f"the tokenizer of a minifuse model has no {name!r}")
        return getattr(tokenizer.backend if name in _READ_ONLY else tokenizer.hand_out(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "model_max_length":
            self._owner.max_seq_length = value
        elif name in ("normalizer", "pre_tokenizer", "post_processor", "decoder", "model"):
            setattr(self._tokenizer.hand_out(), name, value)
        elif getattr(self, name) != value:  # otherwise a program's wish would be lost in silence
            raise AttributeError(
                f"{name!r} of a minifuse model's tokenizer cannot be set to {value!r}: set "
                "model.tokenizer to another one"
            )

    def __repr__(self) -> str:
        return (
            f"ModelTokenizer({self.name_or_path!r}, vocab_size={self.vocab_size}, "
            f"model_max_length={self.model_max_length})"
        )

    # ---- vocabulary -------------------------------------------------------------------------

    @functools.cached_property
    def special_tokens_map(self) -> dict[str, str]:
        """ "cls_token", "pad_token" and so on, and what stands for each."""
        return _special_tokens(self._folder, self._tokenizer.backend)

    @property
    def model_max_length(self) -> int:
        """The model's max_seq_length; setting it sets that."""
        return int(self._owner.max_seq_length)

    @property
    def vocab_size(self) -> int:
        """Tokens of the vocabulary, added ones not counted."""
        return int(self._tokenizer.backend.get_vocab_size(with_added_tokens=False))

    def __len__(self) -> int:
        return int(self._tokenizer.backend.get_vocab_size(with_added_tokens=True))

    def get_vocab(self) -> dict[str, int]:
        """Token -> id, added ones as well."""
        return dict(self._tokenizer.backend.get_vocab(with_added_tokens=True))

    vocab = property(get_vocab)

    @property
    def all_special_tokens(self) -> list[str]:
        """The special tokens, each once."""
        return list(dict.fromkeys(self.special_tokens_map.values()))

    @property
    def all_special_ids(self) -> list[int]:
        """Their ids."""
        return [self.convert_tokens_to_ids(token) for token in self.all_special_tokens]

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """Special tokens that a text, or a pair of texts, gets."""
        return int(self._tokenizer.backend.num_special_tokens_to_add(pair))

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """The id of a token, or of each; of one that is unknown, the unknown token's."""
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        found = self._tokenizer.backend.token_to_id(tokens)
        unknown = self.special_tokens_map.get("unk_token")
        if found is None and unknown is not None:
            found = self._tokenizer.backend.token_to_id(unknown)
        return found

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """The token of an id, or of each."""
        if np.ndim(ids) == 0:
            return self._tokenizer.backend.id_to_token(int(ids))
        dropped = set(self.all_special_ids) if skip_special_tokens else set()
        return [self.convert_ids_to_tokens(one) for one in ids if int(one) not in dropped]

    # ---- texts to tokens --------------------------------------------------------------------

    def tokenize(
        self, text: str, pair: str | None = None, add_special_tokens: bool = False
    ) -> list[str]:
        """The tokens of a text."""
        encoding = self._tokenizer.backend.encode(text, pair, add_special_tokens=add_special_tokens)
        return list(encoding.tokens)

    def encode(self, text: Any, text_pair: Any = None, **kwargs: Any) -> list[int]:
        """The ids of a text or of a pair; arguments as for a call."""
        return list(self(text, text_pair, **kwargs)["input_ids"])

    def __call__(
        self,
        text: Any,
        text_pair: Any = None,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        verbose: bool = True,
    ) -> Encodings:
        """Texts or pairs as ids.

        Args:
            text, text_pair: a string each, or lists of as many strings; text may hold pairs.
            add_special_tokens: those of the model.
            padding: True or "longest", "max_length", or False.
            truncation: True or "longest_first", "only_first", "only_second", or False; None: True
                where max_length is given.
            max_length: of truncation and padding; None takes model_max_length.
            pad_to_multiple_of: with padding, make lengths multiples of it.
            return_tensors: "np" or "pt"; None gives lists.
            return_token_type_ids, return_attention_mask, return_special_tokens_mask,
                return_offsets_mapping, return_length: what comes beside the ids.
            verbose: accepted; there is nothing to say.

        Raises:
            TypeError: what is no text.
            ImportError: tensors are asked and PyTorch is not installed.
            ValueError: an argument that is none of these, texts of different lengths as one array,
                or max_length has no room for the special tokens.
        """
        truncation = max_length is not None if truncation is None else truncation
        for name, value, known in (
            ("truncation", truncation, _TRUNCATIONS),
            ("padding", padding, _PADDINGS),
            ("return_tensors", return_tensors, (None, "np", "pt")),
        ):
            if value not in known:
                raise ValueError(f"{name} is {value!r}, wanted one of {known}")
        texts, is_single = _as_batch(text, text_pair)
        encodings = self._tokenizer.backend.encode_batch(
            texts, add_special_tokens=add_special_tokens
        )
        most = self.model_max_length if max_length is None else max_length
        places = [range(len(one.ids)) if truncation in _NEVER else _kept(one, most, truncation)
                  for one in encodings]  # fmt: skip
        has_types = self._tokenizer.has_token_types
        wanted = {
            "input_ids": ("ids", self.pad_token_id or 0, True),
            "token_type_ids": ("type_ids", 0, _or(return_token_type_ids, has_types)),
            "attention_mask": ("attention_mask", 0, _or(return_attention_mask, True)),
            "special_tokens_mask": ("special_tokens_mask", 1, return_special_tokens_mask),
            "offset_mapping": ("offsets", (0, 0), return_offsets_mapping),
        }
        size = _padded_size([len(one) for one in places], padding, most, pad_to_multiple_of)
        result = Encodings()
        for key, (attribute, filler, is_wanted) in wanted.items():
            if is_wanted:
                rows = [
                    [getattr(one, attribute)[i] for i in kept]
                    for one, kept in zip(encodings, places, strict=True)
                ]
                result[key] = [row + [filler] * (size - len(row)) for row in rows]
        if return_length:
            result["length"] = [len(row) for row in result["input_ids"]]
        if return_tensors is None:
            if not is_single:
                return result
            return Encodings((k, v if k == "length" else v[0]) for k, v in result.items())
        return Encodings((k, _as_tensor(k, v, return_tensors)) for k, v in result.items())

    encode_plus = batch_encode_plus = __call__

    # ---- tokens to texts --------------------------------------------------------------------

    def decode(self, token_ids: Any, skip_special_tokens: bool = False, **kwargs: Any) -> Any:
        """The text of ids, or of each list of ids; other arguments change nothing."""
        ids = np.asarray(token_ids).tolist() if hasattr(token_ids, "shape") else token_ids
        if isinstance(ids, int):
            ids = [ids]
        if ids and not isinstance(ids[0], (int, np.integer)):
            return self.batch_decode(ids, skip_special_tokens)
        return self._tokenizer.backend.decode(ids, skip_special_tokens=skip_special_tokens)

    def batch_decode(
        self, sequences: Iterable[Any], skip_special_tokens: bool = False, **kwargs: Any
    ) -> list[str]:
        """The text of each list of ids."""
        return [self.decode(ids, skip_special_tokens) for ids in sequences]


def _special_tokens(folder: Path, backend: Any) -> dict[str, str]:
    """ "cls_token" and so on -> the token, as tokenizer_config.json and its older sister say it."""
    paths = [folder / "special_tokens_map.json", folder / "tokenizer_config.json"]
    states = [read_state(path) for path in paths if path.is_file()]
    tokens: dict[str, str] = {}
    for name in _SPECIAL:
        for state in states:
            token = state.get(name)
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str) and backend.token_to_id(token) is not None:
                tokens[name] = token
    return tokens


def _or(asked: bool | None, default: bool) -> bool:
    return default if asked is None else asked


def _as_batch(text: Any, pair: Any) -> tuple[list[Any], bool]:
    """Texts or pairs as a list, and whether there is one alone."""
    is_single = isinstance(text, str)
    if isinstance(pair, str) != is_single and pair is not None:
        raise TypeError("text and text_pair: wanted two strings, or two lists of strings")
    firsts: list[Any] = [text] if is_single else [_text_or_pair(one) for one in text]
    if pair is None:
        return firsts, is_single
    seconds = [pair] if is_single else list(pair)
    if len(firsts) != len(seconds):
        raise ValueError(f"{len(firsts)} texts and {len(seconds)} of text_pair, wanted as many")
    return list(zip(firsts, seconds, strict=True)), is_single


def _text_or_pair(value: Any) -> Any:
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple)) and len(value) == 2:
        return tuple(value)
    raise TypeError(f"{value!r:.50} is a {type(value).__name__}, wanted a string or a pair of them")


def _kept(encoding: Any, most: int, truncation: bool | str) -> Sequence[int]:
    """Places of the tokens that stay where there is room for so many."""
    size = len(encoding.ids)
    if size <= most:
        return range(size)
    texts = encoding.sequence_ids
    first = [place for place, text in enumerate(texts) if text == 0]
    second = [place for place, text in enumerate(texts) if text == 1]
    special = [place for place, text in enumerate(texts) if text is None]
    room = most - len(special)
    counts = len(first), len(second)
    if truncation == "only_first":
        counts = room - len(second), len(second)
    elif truncation == "only_second":
        counts = len(first), room - len(first)
    elif room >= 0:
        counts = shared_lengths(*counts, room) if second else (room, 0)
    if room < 0 or min(counts) < 0:
        raise ValueError(f"max_length={most} has no room for what may not be cut of {size} tokens")
    return sorted(special + first[: counts[0]] + second[: counts[1]])


def _padded_size(lengths: list[int], padding: bool | str, most: int, multiple: int | None) -> int:
    """The least length of each row; 0: they stay as they are."""
    if padding in (False, "do_not_pad"):
        return 0
    size = most if padding == "max_length" else max(lengths, default=0)
    return -(-size // multiple) * multiple if multiple else size


def _as_tensor(key: str, rows: list[Any], kind: str) -> Any:
    if key != "length" and len({len(row) for row in rows}) > 1:
        raise ValueError(f"{key}: texts of different lengths are no array: pass padding=True")
    array = np.asarray(rows, np.int64)
    if kind == "np":
        return array
    return import_torch().from_numpy(array)
