"""The section about problems of the data: findings such as leakage, and violations of the data schema."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.data.quality.data_findings import find_suspicious
from trainer.data.quality.examined_images import MAX_SCANNED, ExaminedImages
from trainer.data.quality.finding import Finding, Place
from trainer.errors import Problem
from trainer.report.embedded_images import EmbeddedImages, card, gallery
from trainer.report.markup import Html, element, joined, note, source_location
from trainer.report.outlines import labelled_outlines
from trainer.report.page import Page
from trainer.report.tables import Table

_SHOWN_PLACES = 6
_LISTED_PLACES = 50
_LISTED_PROBLEMS = 500


def add_data_problems(
    page: Page, images: ExaminedImages | None, embedded: EmbeddedImages, problems: Sequence[Problem] = ()
) -> None:
    """Add the section of findings and schema violations.

    Args:
        images: the valid lines of the data; None if there is none.
        problems: errors and warnings from checking the data against the schema.
    """
    found = _finding_blocks(images, embedded) if images is not None else [element("p", "No line is valid.")]
    page.add("Data problems", *found, *_schema_blocks(problems))


def _finding_blocks(images: ExaminedImages, embedded: EmbeddedImages) -> list[object]:
    findings = find_suspicious(images)
    blocks: list[object] = []
    if not findings:
        blocks.append(element("p", "No duplicates, leakage, suspicious boxes or class imbalance found."))
    for finding in findings:
        blocks += _blocks_of(finding, images, embedded)
    scanned = images.scanned
    if scanned < len(images):
        searched = f"Duplicates and blank images were searched for in {scanned:,} of {len(images):,} images"
        reason = f"; at most {MAX_SCANNED:,} are decoded for this" if scanned else ": none has been decoded"
        blocks.append(note(f"{searched}{reason}."))
    return blocks


def _blocks_of(finding: Finding, images: ExaminedImages, embedded: EmbeddedImages) -> list[object]:
    css_class = "bad" if finding.serious else "warn"
    bullet = element("span", "● ", class_=css_class, aria_hidden="true")
    are_pairs = any(place.other is not None for place in finding.places)
    cards = [_card(images, place, embedded) for place in finding.places[:_SHOWN_PLACES]]
    blocks: list[object] = [
        element("h3", bullet, finding.title),
        element("p", finding.why),
        gallery(cards, pairs=are_pairs),
    ]
    if finding.places:
        rows = [(element("code", place.where), place.detail) for place in finding.places]
        name, summary = f"finding-{finding.kind}", f"All {len(rows):,}, by file and line"
        blocks.append(Table(name, finding.title, ("location", "detail"), rows, _LISTED_PLACES, summary))
    return blocks


def _card(images: ExaminedImages, place: Place, embedded: EmbeddedImages) -> Html | None:
    """Show the image of a finding, or both images of a pair; None if an image cannot be shown."""
    is_pair = place.other is not None
    panes = []
    for index in [place.index] if place.other is None else [place.other, place.index]:
        records, own_index = images.at(index)
        outlines = labelled_outlines(records, own_index, place.number) if place.number is not None else []
        location = images.where(index)
        side = "validation" if images.in_validation(index) else "training"
        title = joined([f"{side}: ", source_location(location)]) if is_pair else ""
        alt = f"{side} image of {location}"
        panes.append(embedded.pane(records, own_index, outlines, title=title, alt=alt))
    if is_pair and None in panes:
        return None
    location_shown = () if is_pair else (source_location(place.where), " ")
    return card(panes, *location_shown, place.detail)


def _schema_blocks(problems: Sequence[Problem]) -> list[object]:
    """List errors first, then warnings."""
    if not problems:
        return []
    rows = [
        (kind, element("code", problem.where), problem.field, problem.rule, problem.got, problem.hint)
        for kind, is_warning in (("error", False), ("warning", True))
        for problem in problems
        if problem.warning == is_warning
    ]
    errors = sum(not problem.warning for problem in problems)
    title = f"Data schema: {errors:,} errors, {len(problems) - errors:,} warnings"
    columns = ("kind", "location", "field", "rule", "got", "hint")
    return [element("h3", title), Table("schema-problems", title, columns, rows, limit=_LISTED_PROBLEMS)]
