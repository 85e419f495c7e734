"""Options, and how their texts become typed settings."""
