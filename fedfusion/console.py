"""How verbs speak to people and to programs: text wrapped at words, errors as sentences, one JSON document."""

import contextlib
import difflib
import os
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

import click
import typer
from typer.core import TyperGroup

from fedfusion.strict_json import dumps

PIPED = 80  # columns of what is not a terminal
NARROW = 60  # below, a text is written under its name


class Verbs(TyperGroup):
    """The verbs of a command line; with --json, what is wrong with a call itself is said as JSON, too."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The verb that `args` begin with; of one that does not exist, what was perhaps meant is said."""
        if ctx.resilient_parsing or args[0] in self.commands:
            return super().resolve_command(ctx, args)
        near = difflib.get_close_matches(args[0], self.commands, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"choose among: {', '.join(self.commands)}"
        raise click.UsageError(f"no verb '{args[0]}' ({hint})", ctx)

    def main(self, args: Sequence[str] | None = None, *rest: Any, **settings: Any) -> Any:
        """Run the verb that `args` name, which are those of the process unless given."""
        given = sys.argv[1:] if args is None else args
        if "--json" not in given:
            return super().main(args, *rest, **settings)
        try:
            code = super().main(args, *rest, **settings | {"standalone_mode": False})
        except click.UsageError as error:
            refuse([error.format_message()], error.exit_code, True)
        sys.exit(code if isinstance(code, int) else 0)


@contextlib.contextmanager
def plain_errors(as_json: bool | None = None) -> Iterator[None]:
    """Say a FedfusionError in plain sentences and end with its exit code.

    It is said as JSON on stdout, too, where that is wanted: where the verb was called with --json, unless given.
    """
    from fedfusion.errors import FedfusionError

    try:
        yield
    except FedfusionError as error:
        context = click.get_current_context(silent=True)
        asked = bool(context and context.params.get("as_json"))
        refuse(str(error).splitlines(), error.exit_code, asked if as_json is None else as_json)


def refuse(sentences: Sequence[str], exit_code: int, as_json: bool) -> None:
    """Print what is wrong, one sentence each, and exit."""
    if as_json:
        typer.echo(dumps({"error": list(sentences), "exit_code": exit_code}))
    say_errors(sentences)
    raise SystemExit(exit_code) from None


def say_errors(sentences: Sequence[str]) -> None:
    """Print errors for people: wrapped on a terminal, one line each anywhere else."""
    width = _columns(sys.stderr) if sys.stderr.isatty() else None
    for sentence in sentences:
        typer.echo(wrapped(sentence, width, "error: ", "  ") if width else f"error: {sentence}", err=True)


def columns() -> int:
    """The width of what is printed."""
    return _columns(sys.stdout) or PIPED


def wrapped(text: str, width: int, first: str = "", others: str = "") -> str:
    """`text` in lines of at most `width` columns, broken at words only, the `first` and the `others` begun as given."""
    return textwrap.fill(
        text,
        width,
        initial_indent=first,
        subsequent_indent=others,
        break_long_words=False,
        break_on_hyphens=False,
    )


def entry(name: str, text: str, name_width: int, indent: int = 0) -> str:
    """A name and what is to be said of it: beside it, or below it where there is little room."""
    beside, start = columns() >= NARROW, " " * (columns() - room(name_width, indent))
    if beside:
        first = f"{' ' * indent}{name}".ljust(len(start))
        return wrapped(text, columns(), first, start) or first.rstrip()
    return "\n".join([f"{' ' * indent}{name}"] * bool(name) + [wrapped(text, columns(), start, start)] * bool(text))


def room(name_width: int, indent: int = 0) -> int:
    """The columns that an :func:`entry` has for its text."""
    return columns() - indent - (name_width + 1 if columns() >= NARROW else 2)


def _columns(stream: TextIO) -> int | None:
    """`COLUMNS`, or the width of the terminal behind `stream`; None where it is a pipe or a file."""
    given = os.environ.get("COLUMNS", "")
    if given.isdigit() and int(given):
        return int(given)
    with contextlib.suppress(OSError, ValueError):
        return os.get_terminal_size(stream.fileno()).columns or None
    return None
