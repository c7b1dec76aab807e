"""`anchorline cache`: what a run's models replied: counted, explained, thrown away.

>>> from anchorline.cli.cache import cache
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from anchorline.cli.options import Json
from anchorline.cli.show import exit_code, print_json

cache = typer.Typer(
    help="The request cache of a run: every reply that was paid for.", no_args_is_help=True, rich_markup_mode="rich"
)

Where = Annotated[str, typer.Argument(metavar="RUN", help="A run folder, or the cache file itself.")]


@cache.command("stats")
def show_stats(where: Where, as_json: Json = False) -> None:
    """Count requests, tokens and dollars, by model and by what they were for.

    [bold]Examples[/bold]

      anchorline cache stats runs/harbour
    """

    def call() -> None:
        from anchorline.llm.upkeep import stats

        found = stats(_file(where))
        if as_json:
            print_json(_plain(found))
            return
        failed = ", ".join(f"{count} {kind}" for kind, count in found.failed.items()) or "none"
        print(f"{found.rows} requests: {found.answered} answered ({found.cut} of them cut), failed: {failed}")
        for title, groups in (("for", found.paid_by_stage), ("model", found.paid_by_model)):
            for name, paid in groups.items():
                usd = "price unknown" if paid.usd is None else f"{paid.usd:.4f} USD"
                print(
                    f"  {title} {name}: {paid.calls} calls, {paid.prompt_tokens} prompt and {paid.completion_tokens} reply "
                    f"tokens, {usd}"
                )
        if found.timed_out:
            print(f"  unknown cost: {found.timed_out} calls timed out, and the endpoint may want them paid")
        print(f"{found.bytes / 2**20:.1f} MiB")

    raise typer.Exit(exit_code(call))


@cache.command("explain")
def show_explanation(
    where: Where,
    request: Annotated[
        str,
        typer.Argument(
            help="A request's key or its first 8 digits or more, or a JSON file with messages and settings."
        ),
    ],
    model: Annotated[str, typer.Option(help="The model that is asked, where REQUEST is a file.")] = "",
    as_json: Json = False,
) -> None:
    """Say why a request is no hit: the stored ones that come nearest, and what differs.

    A file holds {"messages": [{"role": …, "content": …}], "max_tokens": 512} and, where they are not the defaults,
    temperature, top_p, index, schema, and extra_body as the recipe's.

    [bold]Examples[/bold]

      anchorline cache explain runs/harbour request.json --model gpt-4o-mini
    """

    def call() -> None:
        from anchorline.errors import RecipeError
        from anchorline.llm.explain import explain

        asked, extra_body = _request(Path(request)) if Path(request).is_file() else (request, {})
        if not isinstance(asked, str) and not model:
            raise RecipeError("a request in a file names no model; give the one that is asked with --model")
        found = explain(_file(where), asked, model=model, extra_body=extra_body)
        if as_json:
            print_json(_plain(found))
        else:
            print(found.text)

    raise typer.Exit(exit_code(call))


@cache.command("prune")
def throw_away(
    where: Where,
    older_than: Annotated[
        float | None,
        typer.Option(metavar="DAYS", min=0, max=100_000, help="Requests of more days ago.", show_default=False),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Requests to this model.", show_default=False)] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Requests that failed.")] = False,
    as_json: Json = False,
) -> None:
    """Delete requests for which all given conditions hold. What was paid stays counted.

    [bold]Examples[/bold]

      anchorline cache prune runs/harbour --older-than 30

      anchorline cache prune runs/harbour --model gpt-4o-mini --failed
    """

    def call() -> None:
        from anchorline.llm.upkeep import prune

        age = None if older_than is None else timedelta(days=older_than)
        count = prune(_file(where), older_than=age, model=model, failed=failed)
        if as_json:
            print_json({"deleted": count})
        else:
            print(f"{count} requests deleted")

    raise typer.Exit(exit_code(call))


def _file(where: str) -> Path:
    path = Path(where)
    return path / "requests.sqlite" if path.is_dir() else path


def _request(file: Path) -> tuple[Any, dict[str, Any]]:
    """The request in a file, and the JSON that is sent along with it."""
    from pydantic import TypeAdapter, ValidationError

    from anchorline.data import read_json
    from anchorline.errors import DataError
    from anchorline.llm.types import Request

    shape = 'expected {"messages": [{"role": …, "content": …}], "max_tokens": 512, …}'
    value = read_json(file)
    if not isinstance(value, dict):
        raise DataError(shape, file=file)
    extra_body = value.pop("extra_body", None) or {}
    if not isinstance(extra_body, dict):
        raise DataError("expected an object, as the recipe's", file=file, field="extra_body")
    unknown = sorted(value.keys() - {"messages", "max_tokens", "temperature", "top_p", "index", "schema"})
    if unknown:
        raise DataError(f"{', '.join(unknown)}: no setting of a request", file=file)
    try:
        return TypeAdapter(Request).validate_python(value), extra_body
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise DataError(f"{first['msg']}; {shape}", file=file, field=place) from None


def _plain(value: Any) -> Any:
    """Named tuples as JSON objects."""
    if hasattr(value, "_asdict"):
        return {key: _plain(inner) for key, inner in value._asdict().items()}
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value
