"""The program that the commands belong to."""

from __future__ import annotations

from cyclopts import App, Parameter


def _version() -> str:
    from importlib.metadata import version

    return version("image-trainer")  # cyclopts would look for a distribution with the module's name


app = App(
    name="trainer",
    version=_version,
    help="Trains, packages and serves image models from Azure AutoML for Images data, on your own machines.",
    help_format="plaintext",
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,  # main says so
    default_parameter=Parameter(negative_iterable=()),
)
