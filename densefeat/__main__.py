"""``python -m densefeat``: the command line."""

from densefeat_cli.main import main

main()
