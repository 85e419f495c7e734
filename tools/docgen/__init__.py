"""Generate parts of README.md, docs/ and alerts/: `python -m tools.docgen` (make golden).

`printed` says which module fills which part of which page.
"""
