"""Which folders hold the training, validation and test set, and what to suggest where they lie elsewhere."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastclf.data.sources.ignored import OWN_FOLDERS
from fastclf.data.sources.labels import in_order
from fastclf.data.sources.listing import inner_name, look
from fastclf.data.sources.names import printable, some
from fastclf.data.sources.set_names import SETS, set_named
from fastclf.paths import system_name
from fastclf.report import counted, log, remedy

_MAKER = "ImageClassifierData"
# A name before a number, as cameras and scripts count: 'cloudy1.jpg', 'great_dane_12.png', 'cat.0.jpg'; 'dog (3).jpg'.
_COUNTED = (r"^(.+?)[ ._-]*\d+\.\w+$", r"^(.+?)[ ._-]*\(\d+\)\.\w+$")
_EXAMPLE = r"^([^\d_]+)"


@dataclass(frozen=True)
class SetFolders:
    """Where the sets lie, below the data's path; None for a set without a folder."""

    train: str
    valid: str | None
    test: str | None

    @property
    def all_names(self) -> list[str]:
        """The folders of all sets that have one."""
        return [name for name in (self.train, self.valid, self.test) if name is not None]


def find_sets(path: Path, trn_name: str, val_name: str, test_name: str | None) -> SetFolders:
    """Find the folders of the sets. Where 'train', 'valid' or 'test' is missing, another usual name is taken.

    Raises:
        FileNotFoundError: there is no folder to train on, or several could be meant; says what is there instead.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder {path}. Check the path.")
    train = _present(path, trn_name, "trn_name", _has_folders)
    if train is None:
        raise FileNotFoundError(f"there is no folder {path / trn_name}. {_elsewhere(path)}")
    valid = _present(path, val_name, "val_name", _has_folders)
    if valid is not None and (path / valid).resolve() == (path / train).resolve():
        raise ValueError(
            f"val_name={val_name!r} is the folder to train on. Without val_name, val_pct of it is held out."
        )
    test = None if test_name is None else _present(path, test_name, "test_name")
    if test is not None and _lies_in(path, test, (train, valid)):
        if test_name != "test":  # which is the default
            raise ValueError(
                f"test_name={test_name!r} is the folder of another set. Pass test_name=None: there is no test set."
            )
        log(f"the folder {printable(test)} is another set's, so that there is no test set")
        test = None
    return SetFolders(train, valid, test)


def _lies_in(path: Path, test: str, others: Sequence[str | None]) -> bool:
    """Return whether one of the other sets lies in the test set's folder, whose images would all be tested on."""
    home = (path / system_name(test)).resolve()
    places = [(path / system_name(name)).resolve() for name in others if name is not None]
    return any(place.is_relative_to(home) for place in places)


def _present(path: Path, name: str, argument: str, fits: Callable[[Path], bool] = lambda _: True) -> str | None:
    """The folder of a set: its name, or another usual one where a default is not there; None for none of them."""
    name = inner_name(name)
    if name not in SETS or (path / name).is_dir():
        return name
    others = [other for other in look(path)[0] if set_named(other) == name and fits(path / other)]
    others = [other for other in others if other.lower() != "eval"] or others  # beside another it holds results
    if len(others) > 1:
        raise FileNotFoundError(f"there is no folder {path / name}, but {some(others)}. Pass {argument}= to choose.")
    if not others:
        return None
    log(f"no folder {name}: {printable(others[0])!r} is taken for it{remedy(f' ({argument}= chooses another)', '')}")
    return others[0]


def _has_folders(folder: Path) -> bool:
    return bool(look(folder)[0])


def _elsewhere(path: Path) -> str:
    """Describe what a folder without 'train' holds, and the call that reads it."""
    if set_named(path.resolve().name) == "train":
        return f"It looks like the training set's own folder: pass the path {str(path.resolve().parent)!r}."
    folders = list(_two_levels(path))
    trains = [folder / name for folder in folders for name in look(folder)[0] if set_named(name) == "train"]
    above = [*filter(_has_folders, trains)]
    if len(trains) > 1 and all(look(train)[1] for train in trains):
        first = trains[0].relative_to(path)
        return (
            f"The folders {some([train.parent.name for train in trains])} each hold {first.name!r} with images. If "
            f"they are the classes, put the sets above them: move {first.as_posix()} to {first.name}/{first.parent}."
        )
    if above:
        return f"The sets lie deeper: pass the path {str(above[0].parent)!r}."
    for folder in sorted(folders, key=lambda folder: "train" not in folder.name.lower()):
        classes = [name for name in look(folder)[0] if look(folder / name)[1]]
        if len(classes) > 1 and not all(map(set_named, classes)):
            inner = folder.relative_to(path).as_posix()
            share = remedy("a fifth (val_pct=)", "a fifth")
            return (
                f"{folder} holds images in the folders {some(classes)}. If these are the classes, "
                f"{take_as_train(path, inner)}; without a folder of validation images, {share} of them is held out."
            )
    for folder in (*trains, *folders):
        if images := look(folder)[1]:
            return flat(path, folder.relative_to(path).as_posix(), images)
    there = look(path)[0]
    return f"{path} holds {'the folders ' + some(there) if there else 'no folders'} and no images. Check the path."


def _two_levels(path: Path) -> Iterator[Path]:
    """The folder itself, those in it, and those in these."""
    yield path
    inner = [path / name for name in look(path)[0] if name not in OWN_FOLDERS]
    yield from inner
    for folder in inner:
        yield from (folder / name for name in look(folder)[0])


def take_as_train(path: Path, folder: str) -> str:
    """The argument that takes a folder below the root for the training set."""
    return f"pass {remedy(f'trn_name={folder!r}', f'the folder {str(path / folder)!r} as DATA')}"


def flat(path: Path, folder: str, names: Sequence[str]) -> str:
    """Describe images that no folder labels, and the calls that could.

    Args:
        path: the data's root.
        folder: below it.
        names: of the images, relative to the folder.
    """
    table = next((file.name for file in sorted(path.glob("*.[ct]sv"))), None)
    where = "Where a table does" if table is None else f"Where {table!r} does"
    csv = str(path / (table or "labels.csv"))
    return (
        f"{path / folder} holds {counted(len(names), 'image')} in no folder of a class, such as {some(names[:2])}. "
        f"Where the names hold the class: {by_name(folder, names) or _from_name_re(_EXAMPLE, folder)}"
        f"{remedy('; or from_name_func, with a function of the name', '')}. {where}: "
        + remedy(f"{_MAKER}.from_csv(path, {folder!r}, {csv!r}, tfms=tfms).", f"--csv {csv!r}{in_folder(folder)}.")
    )


def in_folder(folder: str) -> str:
    """The option that names a folder of images below the root, where it is not the root itself."""
    return "" if folder == "." else f" --folder {folder!r}"


def by_name(folder: str, names: Sequence[str]) -> str | None:
    """The call that labels images by their names, and what it gives; None where numbered names contain no class."""
    for pattern in _COUNTED:
        labels = [match[1] if (match := re.search(pattern, name)) else None for name in names]
        classes = in_order(label for label in labels if label is not None)
        if None not in labels and 1 < len(classes) <= len(names) / 2:
            return f"{_from_name_re(pattern, folder)}, which gives the classes {some(classes)}"
    return None


def _from_name_re(pattern: str, folder: str) -> str:
    where = "" if folder == "." else f", folder={folder!r}"
    call = f"{_MAKER}.from_name_re(path, r'{pattern}'{where}, tfms=tfms)"
    return remedy(call, f"--name-re '{pattern}'{in_folder(folder)}")
