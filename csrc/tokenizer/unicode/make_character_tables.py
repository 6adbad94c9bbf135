"""Write the tables of characters of the native tokenizers, beside this file or into FOLDER.

    python csrc/tokenizer/unicode/make_character_tables.py [FOLDER]

character_tables.inc: what BERT's and byte-level tokenizers make of each character.
grapheme_tables.inc: the class by which each character joins its neighbours (Unicode Standard
Annex 29). Each property is asked of the installed ``tokenizers`` package, for every code point,
and none is taken from a database: the libraries behind that package follow different versions of
Unicode. tests/tokens/test_characters.py compares the files with the installed package.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate, groupby
from pathlib import Path

from tokenizers import Regex
from tokenizers.normalizers import NFC, NFD, BertNormalizer, Precompiled, Replace
from tokenizers.pre_tokenizers import BertPreTokenizer

__all__ = [
    "GRAPHEME_CLASSES",
    "code_points",
    "decompositions",
    "grapheme_classes",
    "lowered",
    "marks",
    "order_classes",
    "properties",
]

# One bit for each property of csrc/tokenizer/unicode/characters.h.
REMOVED, SPACE, PUNCTUATION, CHINESE, MARK, DECOMPOSES, LOWERS, ORDERED = (1 << n for n in range(8))
LETTER, NUMBER, BLANK, JOINS = (1 << n for n in range(4))
# The classes of csrc/tokenizer/unicode/graphemes.h, in its order.
GRAPHEME_CLASSES = [
    "other",
    "carriage_return",
    "line_feed",
    "control",
    "extend",
    "extend_only",
    "linker",
    "joiner",
    "spacing_mark",
    "prepend",
    "pictograph",
    "consonant",
    "leading",
    "vowel",
    "trailing",
    "syllable",
    "syllable_with_trailing",
]
_HANGUL = range(0xAC00, 0xD7A4)  # syllables, which are taken apart by arithmetic
_AT_ONCE = 1 << 14


def code_points() -> Iterator[int]:
    """Yield every code point that a text can hold."""
    yield from range(0xD800)
    yield from range(0xE000, 0x110000)


def _normalizer(**switches: bool) -> BertNormalizer:
    off = dict.fromkeys(("clean_text", "handle_chinese_chars", "strip_accents", "lowercase"), False)
    return BertNormalizer(**(off | switches))


def _each(normalize: Callable[[str], str], points: Iterable[int]) -> dict[int, str]:
    """Code point -> what becomes of it between two letters."""
    results: dict[int, str] = {}
    points = [point for point in points if point != ord("|")]
    for begin in range(0, len(points), _AT_ONCE):
        part = points[begin : begin + _AT_ONCE]
        pieces = normalize("|".join(f"a{chr(point)}a" for point in part)).split("|")
        assert len(pieces) == len(part)
        results |= {point: piece[1:-1] for point, piece in zip(part, pieces, strict=True)}
    results[ord("|")] = normalize("a|a")[1:-1]
    return results


def _separators() -> tuple[set[int], set[int]]:
    """White space and punctuation, as the pre-tokenizer sees them."""
    points = list(code_points())
    alone, within = set(), set()
    for begin in range(0, len(points), _AT_ONCE):
        part = points[begin : begin + _AT_ONCE]
        text = " ".join(f"a{chr(point)}a" for point in part)
        for word, (start, _) in BertPreTokenizer().pre_tokenize_str(text):
            if len(word) == 1 and start % 4 == 1:
                alone.add(ord(word))
            elif len(word) == 3:
                within.add(ord(word[1]))
    return set(points) - alone - within, alone


def properties() -> dict[int, int]:
    """Code point -> its bits, where it has any."""
    space, punctuation = _separators()
    cleaned = _each(_normalizer(clean_text=True).normalize_str, code_points())
    spaced = _each(_normalizer(handle_chinese_chars=True).normalize_str, code_points())
    bits = dict.fromkeys(code_points(), 0)
    for point, text in cleaned.items():
        bits[point] |= REMOVED * (text == "") | SPACE * (point in space)
        assert text in ("", " " if point in space else chr(point)), hex(point)
    for point, text in spaced.items():
        bits[point] |= CHINESE * (text != chr(point))
        assert text in (chr(point), f" {chr(point)} "), hex(point)
    for point in punctuation:
        bits[point] |= PUNCTUATION
    for point in marks():
        bits[point] |= MARK
    return {point: value for point, value in bits.items() if value}


def marks() -> set[int]:
    """Code points that vanish with accents."""
    stripped = _each(_normalizer(strip_accents=True).normalize_str, code_points())
    taken_apart = _each(NFD().normalize_str, code_points())
    alone = {point for point, text in taken_apart.items() if text == chr(point)}
    return {point for point in alone if stripped[point] == ""}


def decompositions() -> dict[int, str]:
    """Code point -> its canonical decomposition, where it is another one."""
    taken_apart = _each(NFD().normalize_str, code_points())
    for point in _HANGUL:
        place = point - 0xAC00
        parts = [0x1100 + place // 588, 0x1161 + place // 28 % 21]
        parts += [0x11A7 + place % 28] * (place % 28 > 0)
        assert taken_apart.pop(point) == "".join(map(chr, parts)), hex(point)
    return {point: text for point, text in taken_apart.items() if text != chr(point)}


def lowered() -> dict[int, str]:
    """Code point -> its small letter, where it is another one."""
    lower = _each(_normalizer(lowercase=True).normalize_str, code_points())
    return {point: text for point, text in lower.items() if text != chr(point)}


def order_classes() -> dict[int, int]:
    """Code point -> a number by which it is sorted among its neighbours, where it is.

    The numbers order as the canonical combining classes do, and equal ones stand for equal classes.
    """
    normalize = NFD().normalize_str
    alone = {p for p, text in _each(normalize, code_points()).items() if text == chr(p)}

    def goes_first(one: int, other: int) -> bool:
        """Return whether one is put before the other that stands before it."""
        return normalize(f"a{chr(other)}{chr(one)}") == f"a{chr(one)}{chr(other)}"

    # Classes run from 1 to 240; the iota below has 240, and nothing goes before it but marks.
    iota, overlay = 0x345, 0x334  # classes 240 and 1
    movable = {
        point
        for point in alone
        if point not in (iota, overlay) and (goes_first(point, iota) or goes_first(overlay, point))
    } | {iota, overlay}
    classes: list[list[int]] = []
    for point in sorted(movable):
        place = 0
        while place < len(classes) and goes_first(classes[place][0], point):
            place += 1
        is_new = place == len(classes) or goes_first(point, classes[place][0])
        if is_new:
            classes.insert(place, [point])
        else:
            classes[place].append(point)
    return {point: rank for rank, same in enumerate(classes, 1) for point in same}


def compositions() -> dict[tuple[int, int], int]:
    """Pairs of code points -> what they are composed to, syllables of Hangul left out."""
    compose = NFC().normalize_str
    pairs = {}
    for point, text in decompositions().items():
        first = compose(text[:-1])
        if len(first) == 1 and len(text) > 1 and compose(first + text[-1]) == chr(point):
            pairs[ord(first), ord(text[-1])] = point
    return pairs


def kinds() -> dict[int, int]:
    """Code point -> its bits of CharacterKind, where it has any."""
    bits = {point: JOINS for _, point in compositions()} | dict.fromkeys(order_classes(), JOINS)
    bits |= dict.fromkeys([*range(0x1161, 0x1176), *range(0x11A8, 0x11C3)], JOINS)
    for bit, pattern in ((LETTER, r"\p{L}"), (NUMBER, r"\p{N}"), (BLANK, r"\s")):
        replace = Replace(Regex(pattern), "").normalize_str
        points = list(code_points())
        kept = set(replace("".join(map(chr, points))))
        gone = (point for point in points if chr(point) not in kept)
        bits |= {point: bits.get(point, 0) | bit for point in gone}
    return bits


def _counting_normalizer() -> Precompiled:
    """A normalizer that puts Z for every cluster of less than six bytes, and for every character of
    a longer one, and leaves line feeds alone.

    A precompiled normalizer replaces a short cluster by what its trie has for the shortest prefix;
    this trie has every single byte.
    """
    leaf, units = 512, [0] * 1024
    units[0] = 256 << 10
    for byte in range(1, 256):
        if byte != ord("\n"):
            place = 256 ^ byte
            units[place] = byte | 1 << 8 | (place ^ leaf) << 10
    units[leaf] = 1 << 31
    return Precompiled(struct.pack(f"<{len(units) + 1}I", 4 * len(units), *units) + b"Z\0")


def grapheme_classes() -> dict[int, int]:
    """Code point -> the number of its class, where it has another one than "other".

    Syllables of Hangul are left out: arithmetic tells their classes.
    """
    normalize = _counting_normalizer().normalize_str
    points = [point for point in code_points() if chr(point) not in "\r\n"]
    accent, joiner, sign = "\u0301", "\u200d", "\xa9"
    consonant, virama, number_sign = "\u0915", "\u094d", "\u0600"
    leading, vowel, trailing = "\u1100", "\u1161", "\u11a8"

    def gives(before: str, after: str, count: int) -> set[int]:
        """Return the code points that give so many Z between two strings."""
        found = set()
        for begin in range(0, len(points), _AT_ONCE):
            part = points[begin : begin + _AT_ONCE]
            pieces = normalize("\n".join(f"{before}{chr(point)}{after}" for point in part))
            for point, piece in zip(part, pieces.split("\n"), strict=True):
                if piece == "Z" * count:
                    found.add(point)
        return found

    # Behind each line: the clusters where the characters join. An accent makes a cluster of the
    # character before it whose length shows where that one began.
    joins = gives("a", "", 1)
    of: dict[str, set[int]] = {
        "prepend": gives("", "a", 1) - joins,
        "control": gives("", accent * 2, 2) - joins,
        "pictograph": gives("", joiner + sign + accent, 4),
        "consonant": gives("", virama + consonant + accent, 4),
        "linker": gives(consonant, consonant + accent, 4) & joins,
        "joiner": {ord(joiner)},
    }
    goes_on = gives(consonant + virama, consonant + accent, 5) & joins
    is_extend = gives(sign, joiner + sign + accent, 5) & joins - of["linker"] - of["joiner"]
    of["extend"], of["extend_only"] = is_extend & goes_on, is_extend - goes_on
    of["spacing_mark"] = joins - is_extend - of["linker"] - of["joiner"]
    assert of["joiner"] <= goes_on
    assert of["linker"] <= goes_on
    assert not of["spacing_mark"] & goes_on
    before_vowel, before_trailing = gives("", vowel + accent, 3), gives("", trailing + accent, 3)
    behind_leading = gives(number_sign + leading, "", 3) - joins
    behind_vowel = gives(number_sign + vowel, "", 3) - joins
    neither = of["prepend"] | joins
    of["leading"] = before_vowel & behind_leading - before_trailing - neither
    of["vowel"] = before_vowel & before_trailing & behind_vowel - neither
    of["trailing"] = before_trailing & behind_vowel - before_vowel - neither
    open_ones = before_vowel & before_trailing & behind_leading - behind_vowel - neither
    closed_ones = before_trailing & behind_leading - before_vowel - behind_vowel - neither
    assert open_ones == set(_HANGUL[::28])
    assert closed_ones == set(_HANGUL) - open_ones
    of["carriage_return"] = {ord("\r")}
    of["line_feed"] = {ord("\n")}
    classes: dict[int, int] = {}
    for name, members in of.items():
        assert not members & classes.keys(), name
        classes |= dict.fromkeys(members, GRAPHEME_CLASSES.index(name))
    return classes


def _ranges(values: dict[int, int]) -> list[tuple[int, int, int]]:
    """(first, last, value) of neighbours with the same value."""
    ranges = []
    for _, group in groupby(
        enumerate(sorted(values)), key=lambda item: (item[1] - item[0], values[item[1]])
    ):
        points = [point for _, point in group]
        ranges.append((points[0], points[-1], values[points[0]]))
    return ranges


def _array(name: str, numbers: Iterable[int]) -> str:
    lines, line = [f"constexpr uint32_t {name}[] = {{"], ""
    for number in numbers:
        part = f"{number:#x}," if number > 9 else f"{number},"
        if len(line) + len(part) > 100:
            lines.append(line)
            line = ""
        line += part
    return "\n".join([*lines, line, "};"])


def _mapping(name: str, texts: dict[int, str]) -> dict[str, list[int]]:
    """The arrays of a mapping: its keys in order, where each one's code points end, and these."""
    keys = sorted(texts)
    ends = list(accumulate((len(texts[key]) for key in keys), initial=0))
    return {
        f"{name}Keys": keys,
        f"{name}Ends": ends,
        name: [ord(character) for key in keys for character in texts[key]],
    }


def _write(path: Path, comment: str, arrays: dict[str, list[int]]) -> None:
    header = "// Written by make_character_tables.py, which says how; not to be edited.\n"
    body = "\n".join(_array(name, numbers) for name, numbers in arrays.items())
    path.write_text(f"{header}{comment}{body}\n")


def main() -> None:
    """Write both files."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    classes = [number for part in _ranges(grapheme_classes()) for number in part]
    _write(
        folder / "grapheme_tables.inc",
        "// First, last and class of neighbours; see graphemes.h for the numbers.\n",
        {"kRanges": classes},
    )
    bits = properties()
    order = order_classes()
    changes = ((DECOMPOSES, decompositions()), (LOWERS, lowered()), (ORDERED, order))
    for bit, points in changes:
        bits |= {point: bits.get(point, 0) | bit for point in points}
    bits |= {point: bits.get(point, 0) | DECOMPOSES for point in _HANGUL}
    _write(
        folder / "character_tables.inc",
        "// Ranges: first, last and bits of neighbours. Mappings: sorted keys, where the code\n"
        "// points of each begin (and those of the one before it end), and the code points.\n"
        "// kCompositions: two code points and the one that stands for both.\n",
        {
            "kRanges": [number for part in _ranges(bits) for number in part],
            **_mapping("kDecomposition", decompositions()),
            **_mapping("kLowered", lowered()),
            "kOrderKeys": sorted(order),
            "kOrder": [order[point] for point in sorted(order)],
            "kKindRanges": [number for part in _ranges(kinds()) for number in part],
            "kCompositions": [
                n for pair, one in sorted(compositions().items()) for n in (*pair, one)
            ],
        },
    )


if __name__ == "__main__":
    main()
