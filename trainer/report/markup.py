"""HTML building blocks of the report. Text is escaped wherever it enters."""

from __future__ import annotations

from collections.abc import Iterable

from markupsafe import Markup

from trainer.report.number_format import format_value

_LONG_FACT = 60
"""Facts with more characters get a line of their own."""


class Html(Markup):
    """HTML that may be inserted as it is; any other text is escaped when it is joined to it."""

    __slots__ = ()

    @classmethod
    def escape(cls, text: object, /) -> Html:
        """Return text as HTML that is safe as content and inside attributes; HTML is returned unchanged."""
        if isinstance(text, Markup):
            return cls(text)
        shown = str(text)
        if not shown.isprintable():
            # HTML and XML forbid control characters even when escaped; class names and paths may hold some.
            shown = "".join(
                c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in shown
            )
        return super().escape(shown)


def joined(parts: Iterable[object]) -> Html:
    """Concatenate parts, escaping those that are not HTML."""
    return Html().join(map(Html.escape, parts))


def element(name: str, *content: object, **attributes: object) -> Html:
    """Build `<name attribute="…">content</name>`.

    Attributes that are None are left out. `class_` becomes class, `data_x` data-x.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{Html.escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{written}>{joined(content)}</{name}>")


def note(*content: object) -> Html:
    """Build a paragraph in small print, such as what was left out or how something was measured."""
    return element("p", *content, class_="note")


def facts(pairs: Iterable[tuple[str, object]]) -> Html:
    """Build a list of names and values; pairs whose value is None are left out."""
    return element(
        "dl",
        *(
            element(
                "div",
                element("dt", name),
                element("dd", cell(value)),
                class_="long" if len(str(value)) > _LONG_FACT else None,
            )
            for name, value in pairs
            if value is not None
        ),
        class_="facts",
    )


def cell(value: object) -> Html:
    """Format a value for readers; HTML is returned unchanged."""
    return value if isinstance(value, Html) else Html.escape(format_value(value))


def source_location(location: str) -> Html:
    """Show the file name and line of `path/to/train.jsonl:17`, with the whole path as a tooltip."""
    return element("code", location.replace("\\", "/").rpartition("/")[2], title=location)


def details(summary: object, *content: object) -> Html:
    """Build content that readers unfold by clicking its summary; needs no script."""
    return element("details", element("summary", summary), *content)
