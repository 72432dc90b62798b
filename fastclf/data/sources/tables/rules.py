"""How a table is to be read: the arguments of `from_csv` and `from_df`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from fastclf.report import remedy

Column: TypeAlias = str | int
Missing: TypeAlias = Literal["raise", "skip"]


@dataclass(frozen=True)
class TableRules:
    """How a table is to be read; see `ImageClassifierData.from_csv`.

    Raises:
        ValueError: an argument can never fit, or two contradict each other.
    """

    call: str
    suffix: str = ""
    continuous: bool = False
    multi: bool | None = None
    cat_separator: str = " "
    label_delim: str | None = None
    fn_col: Column | None = None
    label_col: Column | Sequence[Column] | None = None
    split_col: Column | None = None
    missing: Missing = "raise"
    groups: Column | None = None

    def __post_init__(self) -> None:
        if not self.cat_separator or self.label_delim == "":
            name = "label_delim" if self.cat_separator else "cat_separator"
            raise ValueError(f"{self.call}: {name} must not be empty. Pass e.g. ' '.")
        if self.label_delim is not None and self.cat_separator not in (" ", self.label_delim):
            raise ValueError(f"{self.call}: label_delim and cat_separator are one thing. Pass label_delim only.")
        if self.label_delim is not None and (self.continuous or self.multi is False):
            other = "continuous=True" if self.continuous else "multi=False"
            raise ValueError(f"{self.call}: label_delim means several labels, {other} does not. Pass one of them.")
        if not isinstance(self.suffix, str):
            raise ValueError(f"{self.call}: suffix must be text such as '.jpg', got {self.suffix!r}.")
        if self.missing not in ("raise", "skip"):
            raise ValueError(f"{self.call}: missing must be 'raise' or 'skip', got {self.missing!r}.")

    @property
    def makes_data(self) -> bool:
        """Whether the call makes data sets, and takes all of these arguments: `from_csv` or `from_df`."""
        return self.call.startswith("from_")

    @property
    def delim(self) -> str | None:
        """The delimiter of several labels, where the caller names one; else None."""
        if self.label_delim is not None:
            return self.label_delim
        return None if self.cat_separator == " " else self.cat_separator


def column_argument(argument: str, value: object = "") -> str:
    """Return the argument that names a column, or a command's option for it, and its value where there is one."""
    return remedy(f"{argument}={value}", f"--{argument.replace('_', '-')} {value}".rstrip())
