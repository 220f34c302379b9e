"""Changes of a job's values, such as those by flags of what its file says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from trainer.job.sweep import override_space
from trainer.settings import canonical


def override(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Replace settings, whichever of its names a setting is given by."""
    changed = {canonical(name) for name in changes}
    return {name: value for name, value in settings.items() if canonical(name) not in changed} | dict(changes)


def merge(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Replace a job's values as `Job.read` describes."""
    limits = changes.get("limits")
    if isinstance(limits, BaseModel):
        changes = {**changes, "limits": limits.model_dump(exclude_unset=True)}
    merged = {**values, **changes}
    for name in ("limits", "datastores", "data_assets"):
        if changes.get(name) and values.get(name):
            merged[name] = {**dict(values[name]), **dict(changes[name])}
    settings, before = changes.get("settings") or {}, values.get("settings", {})
    merged["settings"] = override(before, settings)
    if "listed_settings" in values and "listed_settings" not in changes:
        same = {canonical(name): value for name, value in before.items()}
        new = {canonical(name) for name, v in settings.items() if same.get(canonical(name)) != v}
        merged["listed_settings"] = tuple(name for name in values["listed_settings"] if name not in new)
    if "search_space" in values and "search_space" not in changes:
        merged["search_space"] = override_space(values["search_space"], settings, changes.get("model"))
    return merged
