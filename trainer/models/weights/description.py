"""What the files of a Hugging Face Hub repository say about its model. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Description:
    """What a repository's files say about its model; a spec keeps it under `options["hub"]`.

    Attributes:
        name: ORG/NAME.
        config: content of config.json, with `num_labels` in place of the classes' names.
        preprocessor: content of preprocessor_config.json; empty if there is none.
        revision: the commit; "" if unknown.
    """

    name: str
    config: Mapping[str, Any]
    preprocessor: Mapping[str, Any]
    revision: str = ""

    @property
    def pinned_name(self) -> str:
        """ORG/NAME@REVISION, or ORG/NAME if the revision is unknown."""
        return f"{self.name}@{self.revision}" if self.revision else self.name

    def to_dict(self) -> dict[str, Any]:
        """The form that a spec keeps."""
        return asdict(self)

    @classmethod
    def from_dict(cls, kept: Mapping[str, Any]) -> Description:
        """Read what `to_dict` wrote."""
        return cls(kept["name"], kept["config"], kept["preprocessor"], kept.get("revision", ""))
