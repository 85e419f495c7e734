"""Write all that is printed anew: `python -m docs`."""

from __future__ import annotations

from docs.printed import made

for path, text in made().items():
    path.write_text(text)
