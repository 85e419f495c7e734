"""Options, and how their texts become typed configs, one per component."""
