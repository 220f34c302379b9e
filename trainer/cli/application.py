"""The program that the commands belong to, and how it prints their help."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from cyclopts import App, Parameter
from cyclopts.help import DefaultFormatter

if TYPE_CHECKING:
    from cyclopts.help import HelpPanel
    from rich.console import Console, ConsoleOptions

_SENTENCE = re.compile(r".*?[.](?= [A-Z0-9`]| \[|$)")
_CHOICES = re.compile(r"(?:One of|Only) [^.]*[.;]")
_DEFAULT = re.compile(r"\[default: ([^;\]]*)(; [^\]]*)?\]")


class Help:
    """Shows all flags of a command, with texts wrapped to the terminal instead of as in the source code."""

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        entries = [
            entry.copy(description=_one_line(_text(console, entry.description))) for entry in panel.entries
        ]
        DefaultFormatter()(console, options, panel.copy(entries=entries))

    def render_usage(self, console: Console, options: ConsoleOptions, usage: Any) -> None:
        DefaultFormatter().render_usage(console, options, usage)

    def render_description(self, console: Console, options: ConsoleOptions, description: Any) -> None:
        for paragraph in _text(console, description).strip().split("\n\n"):
            is_example = paragraph.startswith("    ")
            console.print(paragraph if is_example else _one_line(paragraph), markup=False, highlight=False)
            console.print()


class ShortHelp(Help):
    """Shows some flags of a command, each with the first sentence of its help and its default.

    Args:
        flags: the flags to show.
    """

    def __init__(self, flags: Collection[str]) -> None:
        self.flags = frozenset(flags)

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True, min_width=30)
        table.add_column()
        for entry in panel.entries:
            for name in self.flags.intersection(entry.positive_names):
                metavar = f" {entry.metavar.split('|')[0]}" if entry.metavar else ""
                name = name.replace("--", "--[no-]", 1) if entry.negative_names else name
                text = _one_line(_text(console, entry.description))
                table.add_row(Text(f"  {name}{metavar}"), Text(_shortened(text)))
        if table.row_count:
            console.print(Text(f"{panel.title}", style="bold"))
            console.print(table)


def _shortened(text: str) -> str:
    """The first sentence of a help text, its choices, and its default unless that differs between models."""
    sentence = _SENTENCE.match(text)
    choices = _CHOICES.search(text)
    default = _DEFAULT.search(text)
    shortened = sentence[0] if sentence else _DEFAULT.sub("", text).rstrip()
    shortened += f" {choices[0][:-1]}." if choices else ""
    if default is None or default[0] == "[default: none]":
        return shortened
    return f"{shortened} [default: {'depends on the model' if default[2] else default[1]}]"


def _text(console: Console, description: Any) -> str:
    """A renderable as plain text, not wrapped."""
    if not description:
        return ""
    return "".join(
        segment.text for segment in console.render(description, console.options.update(width=10_000))
    )


def _one_line(text: str) -> str:
    return re.sub(r"\s*\n\s*", " ", text.strip())


def _version() -> str:
    from importlib.metadata import version

    return version("image-trainer")  # cyclopts would look for a distribution with the module's name


class Program(App):
    """An application of cyclopts in which a value may follow a switch: `--early-stopping false`.

    cyclopts itself takes `--early-stopping=false`, and would read the other form's value as an argument.
    """

    def __call__(self, tokens: str | Iterable[str] | None = None, **options: Any) -> Any:
        words = list(
            sys.argv[1:] if tokens is None else tokens.split() if isinstance(tokens, str) else tokens
        )
        return super().__call__(_with_joined_switches(self, words), **options)


_SWITCH_WORDS = {"on": "true", "enable": "true", "off": "false", "disable": "false"}
_SWITCH_WORDS |= {word: word for word in ("true", "yes", "1", "false", "no", "0")}


def _with_joined_switches(program: App, words: list[str]) -> list[str]:
    """Join each switch with the value that follows it by an equals sign."""
    found = [
        index
        for index, (name, value) in enumerate(pairwise(words))
        if name.startswith("--") and "=" not in name and value.lower() in _SWITCH_WORDS
    ]
    if not found:
        return words
    command = program.parse_commands(words)[1][-1]
    if command.default_command is None:
        return words
    arguments = command.assemble_argument_collection()
    joined = list(words)
    for index in reversed(found):
        try:
            is_switch = isinstance(arguments.match(words[index])[2], bool)
        except ValueError:  # an unknown flag, which cyclopts reports
            continue
        if is_switch:
            joined[index : index + 2] = [f"{words[index]}={_SWITCH_WORDS[words[index + 1].lower()]}"]
    return joined


def application(name: str, **options: Any) -> App:
    """An application of cyclopts whose help and flags look like those of all commands."""
    return Program(
        name=name,
        help_format="plaintext",
        default_parameter=Parameter(negative_iterable=()),
        **{"help_formatter": Help(), **options},
    )


app = application(
    "trainer",
    version=_version,
    help="Train, package and serve image models from Azure AutoML for Images data on your own machines.",
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,  # main reports it
)
