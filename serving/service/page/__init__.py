"""The page at `GET /` of `trainer serve`: a form to try the model, which sends requests to `/score` only."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from dataclasses import asdict
from importlib import resources
from typing import Any

from starlette.responses import Response
from starlette.routing import Route

from serving.explain import methods
from serving.payload import MAX_REQUEST_BYTES
from trainer.drawing.style import STYLE
from trainer.models import Spec
from trainer.tasks import Task

LOWEST_THRESHOLD = 0.05
"""The page requests boxes down to this score once; its slider then filters them."""
_LABEL_THRESHOLD = 0.5
"""Probability from which a multilabel class counts as present, the same as the explanations' default."""

_SCRIPTS = ("drawing.js", "request.js", "results.js", "page.js", "events.js")


def page_route(spec: Spec, *, key_required: bool = False) -> Route:
    """The route of the page for one model.

    The page is assembled once with everything inlined. Its Content-Security-Policy allows only its own style
    and script, by their hashes, and requests to its own server.

    Args:
        key_required: `/score` requires a bearer key; the page itself does not.
    """
    style = _static("style.css")
    script = '"use strict";\n' + "\n".join(map(_static, _SCRIPTS))
    content = _static("index.html")
    for name, text in (
        ("style", style),
        ("script", script),
        ("model", _as_script_data(facts(spec, key_required))),
    ):
        content = content.replace("{{" + name + "}}", text)
    policy = (
        "default-src 'none'; connect-src 'self'; img-src blob: data:; base-uri 'none'; form-action 'none'; "
        f"frame-ancestors 'none'; style-src '{_hash_of(style)}'; script-src '{_hash_of(script)}'"
    )
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        # This address may serve another model tomorrow.
        "Cache-Control": "no-cache",
    }
    return Route("/", Response(content, media_type="text/html", headers=headers), methods=["GET"])


def facts(spec: Spec, key_required: bool) -> dict[str, Any]:
    """What the page's script knows about the model; see `MODEL` in page.js."""
    finds_objects = not spec.task.is_classification
    default = lowest = None
    if finds_objects:
        default = spec.parameters.box_score_threshold
        # Two decimals, like the slider's steps.
        lowest = math.floor(100 * min(LOWEST_THRESHOLD, default)) / 100
    elif spec.task is Task.MULTILABEL:
        default, lowest = _LABEL_THRESHOLD, 0.0
    return {
        "name": spec.model,
        "task_title": spec.task.value.replace("-", " "),
        "classes": list(spec.classes),
        "finds_objects": finds_objects,
        "multilabel": spec.task is Task.MULTILABEL,
        "default_threshold": default,
        "lowest_threshold": lowest,
        "methods": methods.NAMES if spec.task.is_classification else (),
        "key_required": key_required,
        "max_request_bytes": MAX_REQUEST_BYTES,
        "style": asdict(STYLE),
    }


def _static(name: str) -> str:
    return resources.files(__name__).joinpath("static", name).read_text(encoding="utf-8")


def _as_script_data(value: Any) -> str:
    """JSON that is safe in a script element: labels are arbitrary text, and `</script>` would end it."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")


def _hash_of(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
