"""`python -m proxy` is the `kvproxy` command."""

from proxy.cli.main import main

main()
