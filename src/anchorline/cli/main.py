"""The `anchorline` command. Engines are imported by the command that needs them, never for `--help`.

>>> from typer.testing import CliRunner
>>> "run" in CliRunner().invoke(app, ["--help"]).output
True
"""

from __future__ import annotations

from typing import Annotated

import typer

from anchorline import __version__
from anchorline.cli.advise import advise
from anchorline.cli.cache import cache
from anchorline.cli.compare import compare
from anchorline.cli.evaluate import evaluate
from anchorline.cli.export import export
from anchorline.cli.measure import measure
from anchorline.cli.pairs import pairs
from anchorline.cli.run import report, run, sample, train
from anchorline.cli.score import score
from anchorline.cli.show import exit_code, ready_streams

app = typer.Typer(
    name="anchorline",
    help="Tailor a language model to one customer's style: contrastive pairs, anchored objectives, proof of what changed.",
    epilog="Start with: anchorline run recipes/harbour.yaml",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"anchorline {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version


app.command()(run)
app.command()(sample)
app.command()(pairs)
app.command()(measure)
app.command()(export)
app.command()(train)
app.command()(advise)
app.command()(score)
app.command("eval")(evaluate)
app.command()(report)
app.command()(compare)
app.add_typer(cache, name="cache")


def entry() -> None:
    """The console script."""
    ready_streams()
    raise SystemExit(exit_code(app))
