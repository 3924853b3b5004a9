"""What a refused configuration says."""

import pytest

from fedfusion.validation import ConfigErrors


def refused(sentences, attempt, *arguments):
    """Each error holds one of the sentences, in their order, and there are no others."""
    with pytest.raises(ConfigErrors) as caught:
        attempt(*arguments)
    assert len(caught.value.errors) == len(sentences), caught.value.errors
    for sentence, error in zip(sentences, caught.value.errors, strict=True):
        assert sentence in error
