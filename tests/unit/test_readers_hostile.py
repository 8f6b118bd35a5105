"""Files that are no scans at all; damaged ones are in `test_fuzz`."""

import pytest

from scanbench.errors import UserError
from scanbench.tipstate.readers import FORMATS, read_each


@pytest.mark.parametrize("suffix", sorted(FORMATS))
def test_an_empty_file_is_refused_in_every_format(suffix, tmp_path):
    (tmp_path / f"a{suffix}").touch()
    with pytest.raises(UserError, match="is empty"):
        read_each(tmp_path / f"a{suffix}")


def test_an_unknown_format_is_refused_with_those_that_are_known(tmp_path):
    (tmp_path / "a.tif").write_bytes(b"II*")
    with pytest.raises(UserError, match=r"known are \.dat, \.gwy"):
        read_each(tmp_path / "a.tif")
