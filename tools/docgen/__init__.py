"""Generate parts of README.md, docs/, alerts/ and the Helm chart: `python -m tools.docgen` (make golden).

`printed` says which module fills which part of which page.
"""
