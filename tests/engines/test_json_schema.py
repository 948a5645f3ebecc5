"""The part of JSON Schema that manifests are checked by."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdda_deploy.engines.json_schema import problem_in

ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("schema", "fits", "breaks", "says"),
    [
        ({"type": "integer"}, 3, True, "got True, wanted integer"),
        ({"type": "integer"}, 3, 3.0, "wanted integer"),
        ({"type": "number"}, 3.5, float("nan"), "got nan, wanted number"),
        ({"type": ["string", "null"]}, None, 1, "wanted string or null"),
        ({"type": "object"}, {}, [], "got a list of 0, wanted object"),
        ({"const": 1}, 1, True, "got True, wanted 1"),
        ({"enum": ["a", "b"]}, "b", "c", "wanted one of 'a', 'b'"),
        ({"anyOf": [{"type": "null"}, {"minimum": 2}]}, 2, 1, "fits none of the forms"),
        ({"pattern": "^[a-z]+$"}, "ab", "ab\n", "wanted text like"),
        ({"maxLength": 2}, "ab", "abc", "got 3 characters"),
        ({"minLength": 1}, "a", "", "got 0 characters"),
        ({"minimum": 0}, 0, -1, "wanted 0 or more"),
        ({"maximum": 9}, 9, 10**50, "wanted 9 or less"),
        ({"exclusiveMinimum": 0}, 0.1, 0, "wanted more than 0"),
        ({"items": {"type": "integer"}}, [1], [1, "x"], "manifest[1]: got 'x'"),
        ({"minItems": 1}, [1], [], "got 0 items"),
        ({"maxItems": 1}, [1], [1, 2], "got 2 items"),
        ({"required": ["a"]}, {"a": 1}, {}, "manifest.a: missing"),
        ({"additionalProperties": False}, {}, {"x": 1}, "manifest.x: not a field"),
        ({"additionalProperties": {"const": 1}}, {"x": 1}, {"x": 2}, "manifest.x: got 2"),
        ({"propertyNames": {"maxLength": 2}}, {"ab": 1}, {"abc": 1}, "its name: got 3"),
        ({"maxProperties": 1}, {"a": 1}, {"a": 1, "b": 1}, "got 2 entries"),
        ({"$ref": "#/$defs/n", "$defs": {"n": {"minimum": 1}}}, 1, 0, "wanted 1 or more"),
    ],
)
def test_each_keyword_passes_what_fits_and_names_what_does_not(
    schema: dict[str, Any], fits: object, breaks: object, says: str
) -> None:
    assert problem_in(fits, schema) is None
    assert says in str(problem_in(breaks, schema))


def test_a_keyword_that_is_not_supported_is_refused_and_not_ignored() -> None:
    with pytest.raises(ValueError, match="'uniqueItems' is not supported"):
        problem_in([1, 1], {"uniqueItems": True})


@pytest.mark.fuzz
@given(ANY_JSON)
def test_the_answer_is_one_line_whatever_the_value(value: object) -> None:
    schema = {"type": "object", "additionalProperties": {"type": "array", "items": {"minimum": 1}}}
    problem = problem_in(value, schema)
    assert problem is None or ("\n" not in problem and len(problem) < 500)
