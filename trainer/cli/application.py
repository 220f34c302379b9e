"""The program that the commands belong to."""

from __future__ import annotations

from typing import Any

from cyclopts import App, Parameter

from trainer.cli.help import Help


def _version() -> str:
    from importlib.metadata import version

    return version("image-trainer")  # cyclopts would look for a distribution with the module's name


def application(name: str, **options: Any) -> App:
    """An application of cyclopts whose help and flags look like those of all commands."""
    return App(
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
