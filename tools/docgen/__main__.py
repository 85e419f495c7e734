"""Write every generated part: `python -m tools.docgen`."""

from __future__ import annotations

from tools.docgen.printed import made

for path, text in made().items():
    path.write_text(text)
