"""What a family needs beyond the common shrinking, as data: config fields by `model_type`."""

from typing import Any

EXCEPTIONS: dict[str, dict[str, Any]] = {}
