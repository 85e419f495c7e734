"""Programs for the repository: no part of the package."""
