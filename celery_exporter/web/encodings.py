"""What a client takes besides plain bytes."""

from __future__ import annotations

import re

_NO = re.compile(r"q\s*=\s*0(\.0*)?")


def takes_gzip(header: str) -> bool:
    """Tell whether an Accept-Encoding header allows gzip (RFC 9110, section 12.5.3)."""
    for part in header.lower().split(","):
        coding, *parameters = (piece.strip() for piece in part.split(";"))
        if coding in ("gzip", "*"):
            return not any(_NO.fullmatch(parameter) for parameter in parameters)
    return False
