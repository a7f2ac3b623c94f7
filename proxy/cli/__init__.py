"""The command line: words become a `Config`, the `Config` runs, and how that ended becomes the exit code."""
