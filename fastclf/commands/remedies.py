"""Remedies in the words of the command line: messages name arguments of Python calls, and a command has options."""

from __future__ import annotations

import re

_PHRASES = {
    'on_bad="skip"': "--on-bad skip",
    'on_bad="nan"': "--on-bad nan",
    "pass missing='skip'": "pass --missing skip",
    "remove the folder, or pass allow_empty=True": "or remove the folder",
    "add the classes to the training set, or pass drop_unknown=True": "or add the classes to the training set",
    "Drop them: data = data.without_duplicates()": "Keep one of each",
    "Call learn.calibrate().": "Train with fastclf train --calibrate.",
    "pass views=4 to cache augmented views, or set learn.precompute = False": "--no-precompute trains on such images",
    "Pass lower rates (lr).": "Pass lower rates: --lr.",
    "Make the data with bs=2 or more, or call learn.bn_freeze(True)": "Pass --bs 2 or more",
    "or pass weights='<file>' or pretrained=False": "or pass --weights FILE",
    "pass allow_outside=True": "pass --allow-outside",
    "Name the validation rows yourself, or add rows.": "Add images, or put some into a folder valid.",
    "are not used: test_with_labels=True measures on them": "are not used: fastclf eval RUN DATA/test measures on them",
    " (trn_name= chooses another)": "",
    " (val_name= chooses another)": "",
    " (test_name= chooses another)": "",
    "a fifth (val_pct=) of them": "a fifth of them",
    "; learn.fine_tune(setting) tries another": "",
    "; or from_name_func, with a function of the name": "",
    "; multi=True or label_delim= would change that": "",
    "; multi=False would change that": "",
    "val_idxs= or split_col= names": "--split-col names",
    "continuous=True predicts their numbers": "in Python, continuous=True predicts their numbers",
    'class_weights="auto" in the learner makes': 'in Python, class_weights="auto" in the learner makes',
}
"""What a Python call says, and what a command says instead; "" leaves it out."""

_CALL = r"(?:ImageClassifierData\.)?from_"
_NAMED = r"(?P<columns>(?:, (?:fn|label|split)_col=(?:'[^']+'|[^,)]+))*)"
_CALLS = {
    rf"{_CALL}name_re\(path, r(?P<re>'.+?')(?:, folder=(?P<folder>'[^']*'))?, tfms=tfms\)": "--name-re {re}{folder}",
    rf"{_CALL}csv\((?:path|PATH), (?P<folder>'[^']*'), (?P<csv>'.+?'), tfms=tfms{_NAMED}\)": (
        "--csv {csv}{folder}{columns}"
    ),
}
_ARGUMENTS = {
    r"\b(fn|label|split)_col=(?=['\w])": r"--\1-col ",
    r"\b(fn|label|split)_col=": r"--\1-col",
    r"\bsuffix='([^']*)'": r"--suffix \1",
    r"\btrn_name=('[^']*')": r"the folder \1 as DATA",
    r"Pass e\.g\. encoding='[^']*'": "Save it as UTF-8",
}


def as_options(text: str) -> str:
    """Return a message of the Python calls with its remedies as options of a command."""
    for phrase, instead in _PHRASES.items():
        text = text.replace(phrase, instead)
    for pattern, instead in _CALLS.items():
        found = re.search(pattern, text)
        if found:
            parts = {name: part or "" for name, part in found.groupdict().items()}
            folder = "" if parts["folder"] in ("", "'.'") else f" --folder {parts['folder']}"
            parts |= {"folder": folder, "columns": parts.get("columns", "").replace(", ", " ")}
            text = f"{text[: found.start()]}{instead.format(**parts)}{text[found.end() :]}"
    for pattern, instead in _ARGUMENTS.items():
        text = re.sub(pattern, instead, text)
    return text
