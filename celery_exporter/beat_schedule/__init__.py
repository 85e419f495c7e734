"""What beat sends, by an application → the section `expected` of --config.file."""
