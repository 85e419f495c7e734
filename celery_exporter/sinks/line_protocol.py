"""InfluxDB's line protocol: how names, texts and numbers are written.

Invariant: whatever a text holds, a line has one measurement, the tags and fields that it was made of, and one
line break at its end. The format: https://docs.influxdata.com/influxdb/v2/reference/syntax/line-protocol/
"""

from __future__ import annotations

import math
import re

#: Characters of a text; the rest is cut. Texts of events have 255. InfluxDB takes 64 KB in tags.
MAX_TEXT_LENGTH = 1_024
#: The latest time that InfluxDB stores, in nanoseconds since 1970 (models.MaxNanoTime): in the year 2262.
MAX_NANOSECONDS = 2**63 - 2

# As influxdb-client writes them. No server supports line breaks in tags and strings.
_KEY = str.maketrans({",": r"\,", "=": r"\=", " ": r"\ ", "\n": r"\n", "\t": r"\t", "\r": r"\r"})
_STRING = str.maketrans({'"': r"\"", "\\": r"\\", "\n": r"\\n", "\r": r"\\r"})
# InfluxDB 1 reads two backslashes in a tag as two, InfluxDB 3 as one, and each may escape what follows.
_special = re.compile(r"[\\,= \n\t\r]")
_ambiguous_backslash = re.compile(r"\\(?=[\\,= \n\t\r]|\Z)")


def key(text: str) -> str:
    """Return a tag key, a tag value or a field key, escaped.

    A slash replaces a backslash before a special character, another backslash or the end, since servers
    disagree on its meaning there.
    """
    text = text[:MAX_TEXT_LENGTH]
    if _special.search(text) is None:  # translate is slow
        return text
    return _ambiguous_backslash.sub("/", text).translate(_KEY)


def string(text: str) -> str:
    """Return the value of a string field, quoted and escaped."""
    if len(text) > MAX_TEXT_LENGTH:
        text = text[:MAX_TEXT_LENGTH]
    if '"' in text or "\\" in text or "\n" in text or "\r" in text:  # translate is slow
        text = text.translate(_STRING)
    return f'"{text}"'


def value(measured: object) -> str | None:
    """Return the value of a field; None if InfluxDB has no such value (NaN, infinity).

    All numbers are floats: a field keeps the type of its first value, and InfluxDB rejects points with
    another one.
    """
    if isinstance(measured, str):
        return string(measured)
    if isinstance(measured, bool):
        return "true" if measured else "false"
    if not isinstance(measured, (int, float)):
        return None
    try:
        number = float(measured)
    except OverflowError:
        return None
    return repr(number) if math.isfinite(number) else None
