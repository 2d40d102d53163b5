"""Names from files, made harmless wherever they are shown: terminals, Markdown, HTML."""

from __future__ import annotations

import html
import re

#: Characters that are shown of a name, and of a line of settings.
LONGEST_NAME, LONGEST_LINE = 500, 5000
#: What Markdown could take for more than a letter.
_MARKS = re.compile(r"[\\|`*_<>\[\]&]")


def plain(text: str) -> str:
    """Without what a terminal would obey: control characters, line ends, marks that turn the writing round.

    >>> plain("a.weight"), plain(chr(27) + "[31mred" + chr(10))
    ('a.weight', '�[31mred�')
    """
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def short(text: str, longest: int = LONGEST_NAME) -> str:
    """The same without what is beyond so many characters: a terminal is no place for a name of a million.

    >>> short("abcdef", 3)
    'abc...'
    """
    return plain(text if len(text) <= longest else text[:longest] + "...")


def lines(text: str) -> str:
    """The same for a text of several lines."""
    return "\n".join(map(plain, text.split("\n")))


def markdown(text: str) -> str:
    r"""As Markdown that shows the text as it is.

    >>> print(markdown("<b>|[x](y)"))
    \<b\>\|\[x\](y)
    """
    return _MARKS.sub(r"\\\g<0>", plain(text))


def page(text: str) -> str:
    """As HTML that shows the text as it is."""
    return html.escape(plain(text))
