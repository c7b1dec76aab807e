"""`python -m anchorline` is the `anchorline` command."""

from anchorline.cli.main import entry

entry()
