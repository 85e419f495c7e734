"""The command line: commands, their parameters, exit codes."""
