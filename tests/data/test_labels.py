from __future__ import annotations

import pytest

from disk_kd.data.labels import check_labels
from disk_kd.errors import DataError


def test_equal_labels_pass():
    check_labels(("cat", "dog"), ["cat", "dog"])


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (("cat", "dog"), "the dataset has 3 classes, the teacher was trained on 2; choose a teacher"),
        (("cat", "owl", "dog"), r"label 1 is 'dog' in the dataset and 'owl' for the teacher \(.* in another order"),
        (("cat", "dog", "elk"), r"label 2 is 'owl' in the dataset and 'elk' for the teacher \(.* of other names"),
    ],
)
def test_other_labels_are_refused(teacher: tuple[str, ...], message: str):
    with pytest.raises(DataError, match=message):
        check_labels(("cat", "dog", "owl"), teacher)
