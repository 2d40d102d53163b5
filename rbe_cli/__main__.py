"""`python -m rbe_cli` is `rbe`."""

from rbe_cli.cli import main

main()
