"""The section of labels that are likely wrong."""

from __future__ import annotations

from trainer.data.reading.records import Records
from trainer.metrics.results import LabelIssue
from trainer.report.embedded_images import EmbeddedImages, card, gallery
from trainer.report.evaluated_run import EvaluatedRun
from trainer.report.markup import Html, element, note, source_location
from trainer.report.outlines import Outline, legend
from trainer.report.page import Page
from trainer.report.tables import Table

_SHOWN, _LISTED = 8, 100


def add_label_errors(page: Page, evaluated: EvaluatedRun, embedded: EmbeddedImages) -> None:
    """Add images and a list of the labels with which the model confidently disagrees."""
    page.add("Likely label errors", *_blocks(evaluated, embedded))


def _blocks(evaluated: EvaluatedRun, embedded: EmbeddedImages) -> list[object]:
    issues = evaluated.analysis.label_issues
    if not issues:
        return [element("p", "None: the model does not confidently disagree with any label.")]
    rows = [
        (element("code", issue.location), issue.kind, issue.given, issue.suggested, issue.score)
        for issue in issues
    ]
    columns = ("location", "kind", "labelled", "predicted", "score")
    title, summary = "Likely label errors, most likely first", f"All {len(rows)}, by file and line"
    first_of_image = {issue.image: issue for issue in reversed(issues)}
    shown = [issue for issue in issues if first_of_image[issue.image] is issue][:_SHOWN]
    return [
        note("The model confidently disagrees with these labels. Check them: the model may be wrong, too."),
        legend("labelled", "wrong") if evaluated.analysis.task.has_boxes else None,
        gallery([_card(evaluated.records, issue, embedded) for issue in shown]),
        Table("label-issues", title, columns, rows, _LISTED, summary),
        embedded.note(),
    ]


def _card(records: Records, issue: LabelIssue, embedded: EmbeddedImages) -> Html | None:
    outlines = []
    if issue.given_box is not None:
        outlines.append(Outline(issue.given_box, issue.given, "labelled"))
    if issue.box is not None:
        outlines.append(Outline(issue.box, f"{issue.suggested} {issue.score:.2f}", "wrong"))
    description = {
        "missing": f"{issue.suggested} may be missing",
        "superfluous": f"{issue.given} may not be there",
        "badly placed": f"{issue.given} may be badly placed",
    }.get(issue.kind, f"labelled {issue.given}, may be {issue.suggested}")
    pane = embedded.pane(records, issue.image, outlines, alt=description)
    return card([pane], description, f" ({issue.score:.2f}) · ", source_location(issue.location))
