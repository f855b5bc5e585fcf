"""Loading that refuses an incomplete checkpoint instead of filling the gaps with random numbers."""

from __future__ import annotations

from typing import Any

NAMES_SHOWN = 8


class StrictLoadingMixin:
    """Makes `from_pretrained` raise where the library would only warn."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Like the library's `from_pretrained`, for checkpoints that hold exactly this model.

        Raises:
            ValueError: for missing, unexpected or mismatched tensors, by name.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        cls._check_loading_info(str(pretrained_model_name_or_path), info)
        return (model, info) if wants_info else model

    @classmethod
    def _check_loading_info(cls, source: str, info: dict[str, Any]) -> None:
        faults = {
            "missing": sorted(info["missing_keys"]),
            "unexpected": sorted(info["unexpected_keys"]),
            "of another shape": sorted(str(key) for key in info["mismatched_keys"]),
        }
        found = [f"{len(names)} {what}: {_shorten(names)}" for what, names in faults.items() if names]
        if found:
            raise ValueError(
                f"{source} does not hold the tensors of {cls.__name__}: {'; '.join(found)}. "
                "Check that config.json belongs to these weights"
            )


def _shorten(names: list[str]) -> str:
    rest = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


__all__ = ["StrictLoadingMixin"]
