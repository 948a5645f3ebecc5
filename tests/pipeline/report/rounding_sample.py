"""What rounding did and where accuracy goes, in the report to test with."""

from __future__ import annotations

from typing import Any

CHANGES = ("scale_search", "closed_form", "reconstruction", "bias_correction")


def rounding() -> dict[str, Any]:
    """Returns the part of a build in which everything was tried, one correction taken back."""
    closed_form = {"left": [["fc.weight", "more than 8,192 inputs"]], "seconds": 2.4}
    reconstruction = {"settings": {"lr": 0.001}, "blocks": 7, "blocks_kept": 6, "seconds": 41.3}
    reconstruction["warnings"] = [
        "layer3.0.conv2: reconstruction did not lower the error 0.0312; kept as it was."
    ]
    return {
        "effort": "normal",
        "images": 1000,
        "scale_search": {"kept": True, "before": 4.61, "after": 4.5},
        "closed_form": {"kept": True, "before": 4.5, "after": 0.1, **closed_form},
        "reconstruction": {"kept": True, "before": 0.1, "after": 0.0412, **reconstruction},
        "bias_correction": {"biases": 14, "kept": False, "before": 0.0412, "after": 0.0433},
    }


def diagnosis() -> list[dict[str, Any]]:
    """Returns the part of a build with one finding."""
    return [
        {
            "node": "layer3.0.conv2",
            "tensor": "layer3.0.relu_output",
            "cause": "range outliers",
            "evidence": "The largest value, 61.2, is 9.11 times the 99.9th percentile (6.72; RMS "
            "1.31). Rounding the input to 8 bits makes 71.3 % of its output's noise.",
            "option": "--observer percentile or entropy",
            "output_sqnr_db": 9.7,
            "input_sqnr_db": 12.6,
        }
    ]
