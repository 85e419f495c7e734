"""The pages, and what prints parts of them from the tables that run: `python -m docs` (make golden).

`options`, `metrics` and `layers` make parts of pages, `migrating` a page's tables and rules; `printed` knows
which part goes between which marks of which page, and takes chapters over from the README.
"""
