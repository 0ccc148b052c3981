"""The command line: `gallery-upgrade`, or `python -m service.cli`."""
