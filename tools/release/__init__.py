"""Check and build a release, but upload nothing: `make release-check` (docs/contributing/release.md)."""
