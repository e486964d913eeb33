"""Five folds of questions. The rule kept: equal questions share a fold, whatever their options, case and spaces, also
where one set holds another's question.
"""

from __future__ import annotations

import re
import zlib

FOLDS = 5
_OPTIONS = re.compile(r"\n\s*\(?A[.)] ")


def group_of(prompt: str) -> int:
    """Equal for equal questions, whatever their options, case and spaces."""
    stem = _OPTIONS.split(prompt, maxsplit=1)[0]
    return zlib.crc32(" ".join(stem.lower().split()).encode())
