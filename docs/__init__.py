"""The pages, and what prints parts of them from the tables that run: `python -m docs` (make golden).

`printed` knows which part goes between which marks of which page.
"""
