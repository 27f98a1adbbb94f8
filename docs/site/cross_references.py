"""Makes the names in single backticks of docstrings references."""

from __future__ import annotations

from typing import Any

from griffe import Extension, Object

from docs.site import api_pages


class CrossReferences(Extension):
    """Rewrites docstrings as they are loaded; what means nothing stays as it is."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = api_pages.linked(obj.docstring.value, obj.module.path)
