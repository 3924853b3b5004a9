import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedfusion.composition import parse
from fedfusion.strict_json import WORDS, dumps, unworded, worded

LEAVES = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
NUMBERS = LEAVES | st.floats(allow_nan=False, allow_infinity=False)
FINITE = st.recursive(NUMBERS, lambda own: st.lists(own) | st.dictionaries(st.text(max_size=5), own), max_leaves=9)
SETTINGS = st.recursive(
    LEAVES.filter(lambda leaf: leaf not in WORDS) | st.floats(),
    lambda own: st.lists(own) | st.dictionaries(st.text(max_size=5), own),
    max_leaves=9,
)


def strict(text):
    """What a program reads that knows JSON alone."""

    def refuse(constant):
        raise ValueError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


@given(FINITE, st.none() | st.integers(0, 2))
def test_what_is_finite_is_written_as_it_is(content, indent):
    assert dumps(content, indent) == json.dumps(content, indent=indent)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_is_not_is_null_wherever_it_is(value):
    found = strict(dumps({"a": value, "b": [1, {"c": (value, 2.5)}], 3: True, "inf": "inf"}))
    assert found == {"a": None, "b": [1, {"c": [None, 2.5]}], "3": True, "inf": "inf"}


@given(SETTINGS)
def test_settings_come_back_as_they_were(config):
    assert repr(unworded(strict(dumps(worded(config))))) == repr(config)  # nan is not nan, but its text is


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_word_is_what_an_override_says(value):
    assert repr(parse([f"channel.jsr_db={worded(value)}"])[0][0].value()) == repr(value) == repr(unworded(str(value)))
