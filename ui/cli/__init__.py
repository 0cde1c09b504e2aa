"""The command line: options, console, progress, and the commands."""
