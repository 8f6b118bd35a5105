import io
import os
import zipfile

import h5py
import numpy as np
import pytest
from instrument_files import ramp

from scanbench.errors import UserError
from scanbench.tipstate.readers import ReadOptions, read, read_each

NAMES = ("atoms", "asymmetry/dimer", "rows", "defect")
OPTIONS = ReadOptions(label_names=NAMES)
IMAGES = np.stack([ramp(6, 5) * (n + 1) for n in range(4)])


def npz(path, **arrays):
    np.savez(path, **arrays)
    return path


def mat(path, x, y=None, groups=None):
    """Write as MATLAB does: every array with its axes reversed."""
    with h5py.File(path, "w") as file:
        file["x_raw"] = x.T
        if y is not None:
            file["y"] = y.T
        if groups is not None:
            file["groups"] = groups.T
    return path


def test_an_npz_gives_every_scan_with_its_label_group_and_name(tmp_path):
    path = npz(
        tmp_path / "a.npz",
        images=IMAGES,
        labels=np.array([2, 0, -1, 3]),
        groups=np.array(["mon", "mon", "tue", "tue"]),
        scan_ids=np.array(["p", "q", "r", "s"]),
    )
    scans = read(path, OPTIONS)
    np.testing.assert_array_equal([s.heights_LP for s in scans], IMAGES)
    assert [s.label for s in scans] == ["rows", "atoms", None, "defect"]
    assert [s.group for s in scans] == ["mon", "mon", "tue", "tue"]
    assert [s.name for s in scans] == ["p", "q", "r", "s"]


@pytest.mark.parametrize(
    "labels", [np.array(["rows", "atoms", "", "defect"]), np.array([2.0, 0.0, -1.0, 3.0])]
)
def test_npz_labels_may_be_names_or_numbers(tmp_path, labels):
    scans = read(npz(tmp_path / "a.npz", images=IMAGES, labels=labels), OPTIONS)
    assert [s.label for s in scans] == ["rows", "atoms", None, "defect"]


def test_one_bad_image_does_not_lose_the_others(tmp_path):
    images = IMAGES.copy()
    images[1] = 7
    images[2, 0, 0] = np.inf
    images[3, 3:] = np.nan
    scans, refused = read_each(npz(tmp_path / "a.npz", images=images), OPTIONS)
    assert [(s.name, s.lines, s.planned_lines) for s in scans] == [
        ("a-000000", 6, 6),
        ("a-000003", 3, 6),
    ]
    assert "a-000001 is constant" in str(refused[0])
    assert "a-000002 holds infinite" in str(refused[1])


class Payload:
    """Unpickling this leaves a file behind."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("key", ["images", "labels"])
def test_a_pickle_is_refused_and_never_opened(tmp_path, key):
    arrays = {"images": IMAGES, key: np.array([Payload(tmp_path / "pwned")] * 4, dtype=object)}
    with pytest.raises(UserError, match=f"`{key}` is a pickle"):
        read(npz(tmp_path / "a.npz", **arrays), OPTIONS)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": np.arange(4)}, "holds no array `images`"),
        ({"images": IMAGES[0]}, r"shape \(6, 5\); give \[n, lines, pixels\]"),
        ({"images": IMAGES[..., None]}, r"give \[n, lines, pixels\]"),
        ({"images": IMAGES, "labels": np.arange(3)}, "`labels` has 3 entries for 4 images"),
        ({"images": IMAGES, "labels": np.array([0, 1, 2, 4])}, "label 4 of scan 3 is out of range"),
        ({"images": IMAGES, "labels": np.array([0, -2, 2, 3])}, "label -2 of scan 1 is out of"),
        ({"images": IMAGES, "labels": np.array([0, 0.5, 1, 2])}, "give .n. names or integers"),
        ({"images": IMAGES, "labels": np.array([0, np.nan, 1, 2])}, "give .n. names or integers"),
        ({"images": IMAGES, "labels": np.eye(4)[:, :3]}, "3 columns for 4 label_names"),
        ({"images": IMAGES, "labels": np.ones((4, 4))}, "label of scan 0 is not one-hot"),
        ({"images": IMAGES[:, :, :1]}, "6 lines of 1 pixels"),
        ({"images": IMAGES[:0]}, "holds no"),
        ({"images": IMAGES.astype("U9")}, "holds <U9 values"),
        ({"images": IMAGES + 1j}, "holds complex64 values"),
    ],
)
def test_wrong_npz_contents_are_refused_in_one_line(tmp_path, arrays, message):
    with pytest.raises(UserError, match=message) as error:
        read(npz(tmp_path / "a.npz", **arrays), OPTIONS)
    assert "\n" not in str(error.value)


def test_an_npz_bomb_is_refused_by_its_header(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (10**6, 10**3, 10**3)}
    )
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", header.getvalue() + bytes(10**7))
    with pytest.raises(UserError, match="more than max_container_pixels"):
        read(path, OPTIONS)
    with pytest.raises(UserError, match=r"unpacks from \d+ to \d+ bytes"):
        read(path, ReadOptions(max_container_pixels=10**13))


def test_containers_are_bounded_by_bytes_not_by_elements(tmp_path):
    # 120 elements each, within the bound, but of 16 bytes.
    options = ReadOptions(label_names=NAMES, max_container_pixels=120)
    x = IMAGES.astype(np.complex128)
    with pytest.raises(UserError, match=r"images is complex128 .* more than max_container_pixels"):
        read(npz(tmp_path / "a.npz", images=x), options)
    with pytest.raises(UserError, match=r"x_raw is complex128 .* more than max_container_pixels"):
        read(mat(tmp_path / "a.mat", x.reshape(-1, 5).T, np.eye(4)), options)


def test_one_long_text_does_not_make_every_entry_long(tmp_path):
    groups = np.array(["a", "b", "c", "d" * 1025])
    with pytest.raises(UserError, match="groups holds texts of 4100 bytes"):
        read(npz(tmp_path / "a.npz", images=IMAGES, groups=groups), OPTIONS)


@pytest.mark.parametrize("size", [0, 1, 100, -30])
def test_truncated_npz_and_mat_are_refused(tmp_path, size):
    for path in (
        npz(tmp_path / "a.npz", images=IMAGES),
        mat(tmp_path / "a.mat", IMAGES.reshape(-1, 5).T, np.eye(4)),
    ):
        content = path.read_bytes()[:size]
        path.write_bytes(content)
        with pytest.raises(UserError, match=path.name):
            read(path, OPTIONS)


@pytest.mark.parametrize("turn", [np.array, np.transpose])
def test_a_mat_file_is_read_line_by_line_whichever_way_y_stands(tmp_path, turn):
    images = np.stack([ramp(6, 5) * (n + 1) for n in range(3)])
    onehot = np.eye(4)[[2, 0, 3]]
    # x_raw [pixels, lines·n]: line after line, in MATLAB's own axes.
    scans = read(mat(tmp_path / "a.mat", images.reshape(-1, 5).T, turn(onehot)), OPTIONS)
    np.testing.assert_array_equal([s.heights_LP for s in scans], images)
    assert [s.label for s in scans] == ["rows", "atoms", "defect"]


def test_a_mat_file_may_label_every_line_if_it_says_how_many_a_scan_has(tmp_path):
    images = IMAGES[:3]
    onehot = np.repeat(np.eye(4)[[2, 0, 3]], 6, axis=0)
    path = mat(tmp_path / "a.mat", images.reshape(-1, 5).T, onehot)
    options = ReadOptions(label_names=NAMES, mat_lines=6)
    assert [s.label for s in read(path, options)] == ["rows", "atoms", "defect"]
    with pytest.raises(UserError, match="set mat_lines"):
        read(path, OPTIONS)
    onehot[7] = onehot[0]
    with pytest.raises(UserError, match="y changes inside scan 1"):
        read(mat(tmp_path / "b.mat", images.reshape(-1, 5).T, onehot), options)


@pytest.mark.parametrize("shape", [(4, 1), (1, 4), (4,)])
def test_a_mat_file_may_tell_the_group_of_each_scan(tmp_path, shape):
    groups = np.array([7.0, 7, 11, 7]).reshape(shape)
    path = mat(tmp_path / "a.mat", IMAGES.reshape(-1, 5).T, np.eye(4), groups)
    assert [s.group for s in read(path, OPTIONS)] == ["7", "7", "11", "7"]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (np.arange(3.0), r"of shape \(3,\) for 4 scans; give one whole number per scan"),
        (np.array([b"a", b"b", b"c", b"d"]), "give one whole number per scan"),
        (np.array([1, 2, np.nan, 3]), "no whole number"),
        (np.array([1, 2, 2.5, 3]), "no whole number"),
    ],
)
def test_groups_of_a_mat_file_that_are_none_are_refused(tmp_path, groups, message):
    path = mat(tmp_path / "a.mat", IMAGES.reshape(-1, 5).T, np.eye(4), groups)
    with pytest.raises(UserError, match=message):
        read(path, OPTIONS)


def test_wrong_mat_contents_are_refused_in_one_line(tmp_path):
    x = IMAGES.reshape(-1, 5).T
    for n, (arguments, message) in enumerate(
        [
            ((x, np.eye(5)), r"y has shape \(5, 5\)"),
            ((x, np.ones((4, 4))), "give one-hot"),
            ((x,), "set mat_lines"),
            ((x[0], np.eye(4)), r"give \[pixels, lines·n\]"),
        ]
    ):
        with pytest.raises(UserError, match=message):
            read(mat(tmp_path / f"{n}.mat", *arguments), OPTIONS)
    (tmp_path / "old.mat").write_bytes(b"MATLAB 5.0 MAT-file, Platform: PCWIN64".ljust(600))
    with pytest.raises(UserError, match=r"not MATLAB v7\.3"):
        read(tmp_path / "old.mat", OPTIONS)


def test_a_mat_file_cannot_reach_for_another_file(tmp_path):
    mat(tmp_path / "other.mat", IMAGES.reshape(-1, 5).T)
    path = tmp_path / "a.mat"
    with h5py.File(path, "w") as file:
        file["x_raw"] = h5py.ExternalLink("other.mat", "x_raw")
    with pytest.raises(UserError, match="not an array stored in this file"):
        read(path, ReadOptions(mat_lines=6))
    (tmp_path / "raw.bin").write_bytes(bytes(4 * 120))
    with h5py.File(path, "w") as file:
        file.create_dataset(
            "x_raw", (24, 5), "f4", external=[(str(tmp_path / "raw.bin"), 0, 4 * 120)]
        )
    with pytest.raises(UserError, match="not an array stored in this file"):
        read(path, ReadOptions(mat_lines=6))


def test_a_mat_bomb_is_refused_by_its_shape(tmp_path):
    path = tmp_path / "a.mat"
    with h5py.File(path, "w") as file:
        file.create_dataset("x_raw", (10**7, 10**3), "f4", chunks=(1000, 1000))
    with pytest.raises(UserError, match="more than max_container_pixels"):
        read(path, ReadOptions(mat_lines=100))
