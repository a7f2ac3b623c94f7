"""`python -m proxy` is the `kvproxy` command."""

from proxy.cli import main

main()
