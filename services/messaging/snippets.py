"""Snippets of texts in scripts without spaces, in which Postgres can't tell words apart."""

import re
from collections.abc import Sequence
from html import escape

# As is_spaceless in migration 0018: Thai, Lao, Myanmar, Khmer, kana, Han.
_SPACELESS = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
_RUN = re.compile(f"[{_SPACELESS}]+")
_LETTER = rf"[^\W{_SPACELESS}]"  # of a script with spaces, or a digit
_WORD = re.compile(f"[{_SPACELESS}]+|{_LETTER}+")
CONTEXT = 60  # characters before and after the first match


def snippets(query: str, contents: Sequence[bytes], made: Sequence[bytes]) -> list[bytes]:
    """Return the snippet of each text: the one that Postgres `made`, unless the query has a script without spaces.

    Then it is the part of the text around the first of the query's words, with all of them in bold. Of similar words it
    marks the pairs of characters by which they were found.
    """
    if not _RUN.search(query):
        return list(made)
    words = _WORD.findall(query)
    pairs = [run[at : at + 2] for run in _RUN.findall(query) for at in range(len(run) - 1)]
    whole, parts = _any_of(words), _any_of([*words, *pairs])
    return [_marked(content.decode(), whole, parts).encode() for content in contents]


def _any_of(words: Sequence[str]) -> re.Pattern[str]:
    """Return a pattern of adjacent words, longest first; those of scripts with spaces are no parts of other words."""
    sorted_words = sorted(set(words), key=len, reverse=True)
    return re.compile(f"(?:{'|'.join(map(_pattern, sorted_words))})+", re.IGNORECASE)


def _pattern(word: str) -> str:
    escaped = re.escape(word)
    return escaped if _RUN.match(word) else f"(?<!{_LETTER}){escaped}(?!{_LETTER})"


def _marked(content: str, whole: re.Pattern[str], parts: re.Pattern[str]) -> str:
    """Return a part of a text as HTML, with the matches between <b> and </b>."""
    pattern = whole if (first := whole.search(content)) else parts
    start = first.start() if first else found.start() if (found := parts.search(content)) else 0
    begin = max(0, start - CONTEXT)
    part, marked, end = content[begin : start + 2 * CONTEXT], [], 0
    for match in pattern.finditer(part):
        marked += [escape(part[end : match.start()], quote=False), f"<b>{escape(match[0], quote=False)}</b>"]
        end = match.end()
    return "".join([*marked, escape(part[end:], quote=False)])
