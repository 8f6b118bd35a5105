"""What `docs/security.md` promises, each promise by a test; damaged files are in `test_fuzz`."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fuzzing
import h5py
import hdf5plugin
import numpy as np
import onnx
import openpyxl
import pandas as pd
import pytest
import yaml
from instrument_files import createc, ramp
from onnx import TensorProto, helper
from PIL import Image, PngImagePlugin
from scans_folder import heights, write_scans
from streaming_example import make_run

from scanbench import parquet
from scanbench.config import resolve
from scanbench.convert import convert
from scanbench.errors import UserError
from scanbench.exported import Exported
from scanbench.files import parse_json, write_json
from scanbench.parquet import read_parquet
from scanbench.runs import load_run
from scanbench.scans import iterate_heights, read_manifest
from scanbench.store import Store
from scanbench.tipstate.ingest import ingest
from scanbench.tipstate.labels import read_table
from scanbench.tipstate.readers import ReadOptions, read_each

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = yaml.safe_load((ROOT / "workflow/schemas/config.schema.yaml").read_text("utf-8"))
SOURCES = [
    path
    for folder in ("src", "examples", "benchmarks", "workflow")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
RULES = [ROOT / "Snakefile", *sorted((ROOT / "workflow/rules").glob("*.smk"))]

# ------------------------------------------------------------------------------ code from data

#: Modules that make objects or code of what they read, or unpack to wherever an archive says.
FORBIDDEN_MODULES = {
    "pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle",
    "tarfile", "code", "codeop", "runpy", "imp",
}  # fmt: skip
FORBIDDEN_NAMES = {"eval", "exec", "compile", "__import__", "breakpoint"}
FORBIDDEN_ATTRIBUTES = {
    "system", "popen", "read_pickle", "to_pickle", "unsafe_load", "full_load", "load_all",
    "extractall", "extract", "unpack_archive", "load_from_checkpoint", "mktemp", "fromstring",
}  # fmt: skip


def complaints(source: str) -> Iterator[str]:
    """Yield what a module does that could run or unpickle what a file holds."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                for name in names:
                    if name.name.partition(".")[0] in FORBIDDEN_MODULES:
                        yield f"{node.lineno}: imports {name.name}"
            case ast.ImportFrom(module=str(module)) if (
                module.partition(".")[0] in FORBIDDEN_MODULES
            ):
                yield f"{node.lineno}: imports from {module}"
            case ast.Call(func=ast.Name(id=name)) if name in FORBIDDEN_NAMES:
                yield f"{node.lineno}: calls {name}"
            case ast.Call(func=ast.Attribute(value=value, attr=attribute), args=args):
                module = value.id if isinstance(value, ast.Name) else ""
                given = {keyword.arg: keyword.value for keyword in node.keywords}
                yield from (f"{node.lineno}: {c}" for c in _of_call(module, attribute, args, given))


def _of_call(
    module: str, attribute: str, args: list[ast.expr], given: dict[str | None, ast.expr]
) -> Iterator[str]:
    def is_(key: str, wanted: bool) -> bool:
        value = given.get(key)
        return isinstance(value, ast.Constant) and value.value is wanted

    if attribute in FORBIDDEN_ATTRIBUTES:
        yield f"calls {attribute}"
    if (module, attribute) == ("torch", "load") and not is_("weights_only", True):
        yield "torch.load without weights_only=True"
    if (module, attribute) == ("yaml", "load"):
        yield "yaml.load"
    numpy = attribute in ("load", "read_array") and module in ("np", "numpy", "format")
    if numpy and not is_("allow_pickle", False):
        yield f"np.{attribute} without allow_pickle=False"
    if "shell" in given:
        yield "a shell"
    if module == "subprocess" and not (args and isinstance(args[0], ast.List | ast.Name)):
        yield "a command that is no list"
    if attribute == "import_module" and not _inside_the_package(args[0]):
        yield "imports a module of any name"


def _inside_the_package(name: ast.expr) -> bool:
    """Tell whether a module's name begins with this package's, whatever follows."""
    if not isinstance(name, ast.JoinedStr):
        return False
    first = name.values[0]
    if isinstance(first, ast.FormattedValue):
        return isinstance(first.value, ast.Name) and first.value.id == "__name__"
    return isinstance(first, ast.Constant) and str(first.value).startswith("scanbench.")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_unpickled_evaluated_or_given_to_a_shell(path: Path) -> None:
    assert list(complaints(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "eval('1')",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "pd.read_pickle(path)",
        "yaml.load(text)",
        "os.system('ls')",
        "subprocess.run('ls', shell=True)",
        "subprocess.run(f'ls {name}')",
        "archive.extractall(folder)",
        "importlib.import_module(name)",
        "importlib.import_module(f'{name}.x')",
    ],
)
def test_the_check_of_sources_sees_what_it_is_for(source: str) -> None:
    assert list(complaints(source))


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.name)
def test_every_value_in_a_shell_command_is_quoted(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    shell = "\n".join(re.findall(r"\bshell:\n((?: {8}.*\n?)+)", text))
    found = re.findall(r"\{((?:params|input|output|wildcards|log|config)\b[^{}]*)\}", shell)
    found += re.findall(r"\{\{([^{}]*)\}\}", text)  # in a text that becomes a command
    # The study is one of a fixed list; a training's options are fixed flags, switched by booleans.
    bare = {one for one in found if not one.endswith(":q")}
    assert bare <= {"params.study", "params.options", "rule", "comparison"}
    assert not re.search(r"\b(pickle|eval|exec|os\.system|subprocess)\b", text)
    assert SCHEMA["properties"]["study"]["enum"] == ["tipstate"]


# ------------------------------------------------------------------------------------------ paths


@pytest.mark.parametrize(
    "name",
    ["../x", "a/b", "/etc/passwd", ".hidden", "-rf", "a b", "a;b", "$(id)", "`id`", "a\n", "", "é",
     "a" * 101],
)  # fmt: skip
@pytest.mark.parametrize("table", ["datasets", "splits", "experiments", "comparisons", "ensembles"])
def test_a_name_that_becomes_part_of_a_path_is_plain(table: str, name: str) -> None:
    config = yaml.safe_load((ROOT / "config.yaml").read_text("utf-8"))
    items = config.setdefault(table, {})
    items[name] = next(iter(items.values()), ["cnn-scan", "vit"])
    with pytest.raises(UserError, match=f"config: {table}") as caught:
        resolve(config, SCHEMA)
    assert "\n" not in str(caught.value)


MARKUP = {
    "a directive": "Scans\n\n.. raw:: html\n\n   <script>alert(1)</script>",
    "a link": "`scans <javascript:alert(1)>`_",
    "a bare link": "scans JavaScript:alert(1)",
    "a last line break": "scans\n",
    "a separator of lines": "scans\u2028\u2028.. raw:: html\u2028\u2028   <script>1</script>",
    "a next line": "scans\x85\x85.. include:: /etc/passwd\x85\x85",
    "a directive alone": ".. image:: http://127.0.0.1/x.png",
    "a directive after a blank": " .. image:: http://127.0.0.1/x.png",
}


@pytest.mark.parametrize("markup", MARKUP.values(), ids=MARKUP)
@pytest.mark.parametrize(
    "path",
    [
        ("datasets", "h-si100", "title"),
        ("datasets", "h-si100", "attribution"),
        ("comparisons", "architectures", "title"),
        ("explanations", "moved-lines", "title"),
        ("curves", "labels", "label"),
    ],
    ids=".".join,
)
def test_text_of_captions_is_no_markup_of_the_report(path: tuple[str, ...], markup: str) -> None:
    config = yaml.safe_load((ROOT / "config.yaml").read_text("utf-8"))
    table, name, key = path
    config[table][name][key] = markup
    with pytest.raises(
        UserError, match=rf"config: {table}\.{name}\.{key}: .* on one line"
    ) as caught:
        resolve(config, SCHEMA)
    assert "\n" not in str(caught.value)


def texts_of(part: Any) -> Iterator[tuple[str, Any]]:
    """Give every key of the schema whose value captions take, and what it says of it."""
    for key, below in part.items() if isinstance(part, dict) else ():
        if key == "properties":
            yield from ((k, below[k]) for k in ("title", "attribution", "label") if k in below)
        yield from texts_of(below)


def test_every_text_that_captions_take_is_checked() -> None:
    found = list(texts_of(SCHEMA))
    assert len(found) >= 12
    for key, said in found:
        while "pattern" not in said:
            said = SCHEMA["$defs"][said["$ref"].rsplit("/", 1)[1]]
        assert said["pattern"] == SCHEMA["$defs"]["caption"]["pattern"], key


@pytest.mark.parametrize("member", ["../../escaped.npy", "/tmp/escaped.npy", "images.npy"])
def test_members_of_an_archive_are_read_by_their_name_and_never_unpacked(
    member: str, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    path = tmp_path / "data/a.npz"
    np.savez(path, images=np.stack([ramp(4, 5), 2 * ramp(4, 5)]))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(member if member != "images.npy" else "../images.npy", b"hostile")
    scans, _ = read_each(path, ReadOptions())
    assert len(scans) == 2
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")) == [
        "data",
        "data/a.npz",
    ]


@pytest.mark.parametrize("shard", ["../outside.npz", "/outside.npz", "sub/shard.npz"])
def test_a_manifest_names_shards_of_its_own_folder_only(shard: str, tmp_path: Path) -> None:
    folder = write_scans(tmp_path / "scans", heights(2))
    manifest = folder / "manifest.csv"
    text = manifest.read_text().replace("shard-00000.npz", shard)
    manifest.write_text(text)
    with pytest.raises(UserError, match="shard"):
        convert({}, folder, tmp_path / "store.h5")
    with pytest.raises(UserError, match="is not a file name"):
        list(iterate_heights(folder, read_manifest(folder)))


def test_a_row_of_a_label_table_names_a_scan_that_was_read_and_opens_no_file(
    tmp_path: Path,
) -> None:
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "outside.npz", images=ramp(4, 5)[None])
    np.savez(tmp_path / "data/a.npz", images=ramp(4, 5)[None])
    labels = tmp_path / "labels.csv"
    labels.write_text("scan,label\n../outside.npz,atoms\n")
    with pytest.raises(UserError, match=r"no scan \.\./outside\.npz is there"):
        ingest({}, tmp_path / "data", labels, tmp_path / "scans")


def test_a_link_out_of_the_data_folder_is_not_followed(tmp_path: Path) -> None:
    data, outside = tmp_path / "data", tmp_path / "outside"
    data.mkdir()
    outside.mkdir()
    for folder in (data, outside):
        np.savez(folder / "a.npz", images=ramp(4, 5)[None])
    (data / "b.npz").symlink_to(outside / "a.npz")
    (data / "folder").symlink_to(outside)
    found = ingest({}, data, None, tmp_path / "scans")
    assert {file: status for file, status, _ in found.inventory} == {
        "a.npz": "read",
        "b.npz": "ignored",
        "folder/": "ignored",
    }


@pytest.mark.parametrize("link", [h5py.ExternalLink("/etc/passwd", "/x"), h5py.SoftLink("/y")])
@pytest.mark.parametrize("what", ["x_raw", "scans"])
def test_an_hdf5_file_holds_its_own_values(what: str, link: Any, tmp_path: Path) -> None:
    path = tmp_path / ("a.mat" if what == "x_raw" else "store.h5")
    if what == "x_raw":
        with h5py.File(path, "w") as file:
            file["y"] = np.eye(4)
    else:
        convert({}, write_scans(tmp_path / "scans", heights(2)), path)
    with h5py.File(path, "r+") as file:
        if what in file:
            del file[what]
        file[what] = link
    with pytest.raises(UserError, match=r"not an array stored|not a scan store"):
        read_each(path, ReadOptions(mat_lines=4)) if what == "x_raw" else Store(path)


@pytest.mark.parametrize("study", ["os", "tipstate.models", "../x", "tipstate\n", 1])
def test_a_run_names_a_study_of_this_package(study: Any, tmp_path: Path) -> None:
    make_run(tmp_path, "features")
    meta = parse_json((tmp_path / "model.json").read_bytes())
    write_json(tmp_path / "model.json", {**meta, "study": study})
    with pytest.raises(UserError, match="study is not one of"):
        load_run(tmp_path)


# ------------------------------------------------------------------------------------------ bombs

#: A bomb unpacks to so much; reading it may take so much memory at most.
UNPACKED, ALLOWED = 2**28, 2**26
OPTIONS = ReadOptions(label_names=("a", "b"), max_pixels=2**20, mat_lines=4)


def zeros(size: int = UNPACKED, wbits: int = zlib.MAX_WBITS) -> bytes:
    """Return zeros deflated, without deflating them all: one piece again and again."""
    piece = bytes(2**20)
    deflate = zlib.compressobj(9, zlib.DEFLATED, wbits)
    first = deflate.compress(piece) + deflate.flush(zlib.Z_FULL_FLUSH)
    again = deflate.compress(piece) + deflate.flush(zlib.Z_FULL_FLUSH)
    return first + again * (size // len(piece) - 1) + deflate.flush(zlib.Z_FINISH)


def archive_bomb(path: Path, member: str, begin: Callable[[Any], None] = lambda _: None) -> None:
    """Write an archive whose only member unpacks to zeros after what `begin` writes."""
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open(member, "w") as file,
    ):
        begin(file)
        for _ in range(UNPACKED // 2**22):
            file.write(bytes(2**22))


def npz_bomb(path: Path) -> None:
    header = {"descr": "<f8", "fortran_order": False, "shape": (UNPACKED // 2**19, 256, 256)}
    archive_bomb(
        path, "images.npy", lambda file: np.lib.format.write_array_header_1_0(file, header)
    )


def npz_bomb_beside_a_scan(path: Path) -> None:
    archive_bomb(path, "images.npy", lambda file: np.save(file, ramp(4, 5)[None]))


def createc_bomb(path: Path) -> None:
    good = createc(np.stack([ramp(), ramp()]))
    path.write_bytes(good[:16_384] + zeros())


def png_bomb(path: Path) -> None:
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(path)
    content = path.read_bytes()
    at = content.index(b"IDAT") - 4
    data = b"IDAT" + zeros()
    chunk = (len(data) - 4).to_bytes(4, "big") + data + zlib.crc32(data).to_bytes(4, "big")
    size = b"IHDR" + (2**16 - 1).to_bytes(4, "big") * 2 + content[24:29]
    header = content[8:12] + size + zlib.crc32(size).to_bytes(4, "big")
    path.write_bytes(content[:8] + header + content[33:at] + chunk + content[-12:])


def png_text_bomb(path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    packed = zeros()
    info.add(b"zTXt", b"Comment\0\0" + packed)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(path, pnginfo=info)


def mat_bomb(path: Path, chunk: tuple[int, int] = (2**16, 2**10)) -> None:
    with h5py.File(path, "w") as file:
        shape = (64, 1024) if chunk[0] > 64 else chunk
        x = file.create_dataset(
            "x_raw", shape, "<f8", chunks=chunk, compression="gzip", maxshape=(None, None)
        )
        x.id.write_direct_chunk((0, 0), zeros(chunk[0] * chunk[1] * 8))


def mat_array_bomb(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("x_raw", (2**16, 2**10), "<f8", chunks=(4, 2**10), compression="gzip")


def mat_of_another_filter(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("x_raw", (64, 64), "<f4", **hdf5plugin.Blosc())


BOMBS = {
    "array.npz": npz_bomb,
    "beside.npz": npz_bomb_beside_a_scan,
    "stream.dat": createc_bomb,
    "image.png": png_bomb,
    "text.png": png_text_bomb,
    "chunk.mat": mat_bomb,
    "array.mat": mat_array_bomb,
    "filter.mat": mat_of_another_filter,
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_scan_file_does_not_become_a_large_one(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    BOMBS[name](path)
    assert path.stat().st_size < UNPACKED / 100
    with fuzzing.bounded(10, ALLOWED):
        try:
            scans, refused = read_each(path, OPTIONS)
        except UserError as error:
            scans, refused = [], [error]
    assert sum(scan.heights_LP.nbytes for scan in scans) < 2**20
    assert not any(isinstance(error.__cause__, MemoryError) for error in refused)


def test_a_workbook_with_far_cells_is_refused(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    sheet = book.active
    sheet["A1"], sheet["B1"] = "scan", "label"
    sheet["XFD2"] = sheet["A1048576"] = "far"
    book.save(tmp_path / "a.xlsx")
    with fuzzing.bounded(60, ALLOWED), pytest.raises(UserError, match="cells"):
        read_table(tmp_path / "a.xlsx", ["a"])


def test_a_workbook_that_unpacks_to_much_is_refused(tmp_path: Path) -> None:
    archive_bomb(tmp_path / "a.xlsx", "xl/sharedStrings.xml")
    with fuzzing.bounded(10, ALLOWED), pytest.raises(UserError, match="unpacks to"):
        read_table(tmp_path / "a.xlsx", ["a"])


def test_a_shard_entry_that_unpacks_to_more_than_its_scan_is_refused(tmp_path: Path) -> None:
    folder = write_scans(tmp_path / "scans", heights(2))
    archive_bomb(folder / "shard-00000.npz", "scan-000000.npy")
    with fuzzing.bounded(10, ALLOWED), pytest.raises(UserError, match="unpacks to"):
        list(iterate_heights(folder, read_manifest(folder)))


def test_a_store_that_promises_what_it_does_not_hold_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.h5"
    convert({}, write_scans(tmp_path / "scans", heights(2)), path)
    with h5py.File(path, "r+") as file:
        for name, shape in (("scans", (2**30, 128, 128)), ("n_lines", (2**30,))):
            kind = file[name].dtype
            del file[name]
            chunks = (1, *shape[1:]) if len(shape) > 1 else (1024,)
            file.create_dataset(name, shape, kind, chunks=chunks)
    with fuzzing.bounded(10, ALLOWED), pytest.raises(UserError, match="was not written to its end"):
        Store(path)


def test_a_table_of_equal_rows_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    monkeypatch.setattr(parquet, "MOST_ROWS", 2**20)
    pd.DataFrame({"a": np.zeros(2**20 + 1)}).to_parquet(path)
    assert path.stat().st_size < 2**15
    with pytest.raises(UserError, match="rows"):
        read_parquet(path, "predict again")


def test_weights_say_how_large_a_model_is(tmp_path: Path) -> None:
    make_run(tmp_path, "cnn-scan")
    meta = parse_json((tmp_path / "model.json").read_bytes())
    write_json(tmp_path / "model.json", {**meta, "options": {"widths": [2**14, 2**14]}})
    with fuzzing.bounded(20, ALLOWED), pytest.raises(UserError, match="does not fit"):
        load_run(tmp_path)


@pytest.mark.parametrize("depth", [30, 2000])
def test_a_configuration_of_aliases_of_aliases_is_refused(depth: int) -> None:
    if depth == 30:  # a few lines, ten to the power of thirty values
        lines = ["a0: &a0 [1, 2]"]
        lines += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]" for k in range(1, depth)]
        config = yaml.safe_load("\n".join(lines))
    else:
        config = {"study": "tipstate"}
        inner = config
        for _ in range(depth):
            inner["study"] = {"study": "x"}  # type: ignore[assignment]
            inner = inner["study"]  # type: ignore[assignment]
    with fuzzing.bounded(20, ALLOWED), pytest.raises(UserError, match="values"):
        resolve(config, SCHEMA)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": NaN}', "-Infinity", b"\xff"])
def test_json_that_python_would_choke_on_or_let_pass_is_refused(text: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)


# ------------------------------------------------------------------------------- exported monitors


def step(path: Path, *, state: list[Any], about: str | None) -> None:
    """Write the smallest ONNX file that has the form of an exported step."""
    inputs = [helper.make_tensor_value_info("line", TensorProto.FLOAT, [4])]
    inputs += [helper.make_tensor_value_info("state", TensorProto.FLOAT, state)]
    node = helper.make_node("Identity", ["line"], ["logits"])
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [4])]
    model = helper.make_model(
        helper.make_graph([node], "step", inputs, outputs),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=9,
    )
    if about is not None:
        model.metadata_props.add(key="scanbench", value=about)
    onnx.save(model, path)


@pytest.mark.parametrize(
    ("state", "about"),
    [([2], None), ([2], "{"), ([2], "NaN"), (["n"], "{}"), ([2**40], "{}"), ([-1], "{}")],
)
def test_a_hostile_step_is_refused_in_one_line(state: Any, about: Any, tmp_path: Path) -> None:
    step(tmp_path / "a.onnx", state=state, about=about)
    with fuzzing.bounded(10, ALLOWED), pytest.raises(UserError, match=r"a\.onnx: ") as caught:
        Exported(tmp_path / "a.onnx")
    assert "\n" not in str(caught.value)


def test_a_step_with_weights_in_another_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(np.zeros(4, np.float32).tobytes())
    folder = tmp_path / "run"
    folder.mkdir()
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4])
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="../secret")
    line = helper.make_tensor_value_info("line", TensorProto.FLOAT, [4])
    sums = helper.make_tensor_value_info("sum", TensorProto.FLOAT, [4])
    node = helper.make_node("Add", ["line", "w"], ["sum"])
    graph = helper.make_graph([node], "step", [line], [sums], [weights])
    opset = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=9)
    (folder / "a.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match="cannot be run"):
        Exported(folder / "a.onnx")


# ----------------------------------------------------------------------------------- text in HTML


def test_templates_escape_what_they_are_given() -> None:
    for path in sorted((ROOT / "src/scanbench/templates").glob("*.j2")):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\|\s*safe\b|autoescape\s+false", text), path
        assert "Content-Security-Policy" in text
    script = (ROOT / "src/scanbench/templates/replay.js").read_text(encoding="utf-8")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script)


def test_the_command_line_refuses_a_spec_that_is_no_json_object() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "scanbench.cli", "convert", "--spec", "[" * 5000, "a", "b"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
